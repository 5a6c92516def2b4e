"""A child process that cannot outlive its parent.

Knows how to start one, how to ask it to end and how to insist. Does not know what the child does, nor in which order a
stack stops. A child gets its own session, so that Ctrl-C in the terminal reaches the parent alone, and on Linux the
kernel signals it when the parent dies, however that happens.
"""

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.local.stopping import wait_for_end

PYTHON = (sys.executable, "-P", "-m")
"""What runs a module of ours: without the current folder on the path, in which the user may have a ``models.py``."""

_MAX_LOG_BYTES = 32 << 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Command:
    """What to run and how it wants to be ended.

    ``on_parent_death`` is what the kernel sends if the parent is killed; ``on_stop`` is what ``Child.stop`` sends.
    ``env`` None means the parent's; ``user`` None means the parent's.
    """

    name: str
    argv: Sequence[str | Path]
    log: Path
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    user: pwd.struct_passwd | None = None
    on_stop: signal.Signals = signal.SIGTERM
    on_parent_death: signal.Signals = signal.SIGKILL


class Child:
    """One running process. Start it from a thread that lives as long as it: the death signal is tied to the thread."""

    def __init__(self, command: Command) -> None:
        self.command = command
        _start_log(command.log)
        with command.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [str(part) for part in command.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=command.env,
                cwd=command.cwd,
                start_new_session=True,
                preexec_fn=_die_with_parent(command.on_parent_death),
                user=command.user.pw_uid if command.user else None,
                group=command.user.pw_gid if command.user else None,
                extra_groups=[] if command.user else None,
            )

    @property
    def pid(self) -> int:
        """The process id, valid until ``exit_code`` is known."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._process.poll()

    def log_tail(self, max_bytes: int = 4000) -> str:
        """The end of what this process, not an earlier one, wrote to its log."""
        with self.command.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - max_bytes))
            return log.read().decode(errors="replace").strip()

    def stop(self, timeout_s: float = 10.0) -> int:
        """Ask it to end, insist after ``timeout_s``, and return the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(self.command.on_stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return self.kill()

    def kill(self) -> int:
        """End it and whatever it started in its session, now."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()


def run_step(argv: Sequence[str | Path], env: Mapping[str, str], log: Path | None) -> int:
    """Run a program to its end and return its exit code. Its words go to ``log``; None: its progress to the terminal.

    It shares our process group, so Ctrl-C reaches it too. Raises KeyboardInterrupt when we are asked to stop.
    """
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log else None
        process = subprocess.Popen(
            [str(part) for part in argv],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out or subprocess.DEVNULL,
            stderr=out,
            preexec_fn=_die_with_parent(signal.SIGKILL),
        )
        try:
            return wait_for_end(process)
        finally:
            # To one that has ended it is nothing.
            process.kill()
            process.wait()


def last_line(text: str) -> str:
    """The line of a log that most likely says why a process ended."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "error" in line.lower()]
    return (telling or lines or ["it said nothing"])[-1]


def _start_log(log: Path) -> None:
    """Make the log's folder, and begin a new log if the old one has grown; one old one is kept."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def _die_with_parent(sent: signal.Signals) -> Callable[[], None]:
    """Return what the new process runs before its program. After the change of user, which would clear the setting."""
    parent = os.getpid()

    def arrange() -> None:
        if _LIBC is None:
            return
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(sent), 0, 0, 0)
        if os.getppid() != parent:  # it died between the fork and this line
            os._exit(1)

    return arrange


def working_folder(pid: int) -> Path | None:
    """The current folder of a process, or None where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def descendants(pid: int) -> set[int]:
    """Every live process below ``pid``, however deep. Empty where there is no /proc."""
    parents = _parents()
    found, frontier = set[int](), {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def still_alive(pids: Iterable[int]) -> set[int]:
    """Those of ``pids`` that have not ended, whoever is their parent now."""
    return set(pids) & _parents().keys()


def _parents() -> dict[int, int]:
    """The parent of every live process; one that only waits to be reaped has ended."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may contain anything; state and parent follow it.
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.parent.name)] = int(parent)
    return parents

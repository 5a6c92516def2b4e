"""A child process that cannot outlive its parent: start it, ask it to end, and kill it after a timeout.

A child has its own session, so that Ctrl-C in the terminal reaches only the parent. On Linux the kernel signals the
child when the parent dies.
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

MAX_LOG_BYTES = 32 << 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Command:
    """A command to run, and its signals.

    ``on_parent_death``: the signal of the kernel when the parent dies. ``on_stop``: the signal of ``Child.stop``.
    ``env`` None and ``user`` None: those of the parent.
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
    """One running process. The thread that starts it must live as long: the death signal depends on the thread."""

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
                preexec_fn=die_with_parent(command.on_parent_death),
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
        """The last log lines of this process, without those of earlier ones."""
        with self.command.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - max_bytes))
            return log.read().decode(errors="replace").strip()

    def ask_to_stop(self) -> None:
        """Ask it to end, and return at once."""
        self.send(self.command.on_stop)

    def stop(self, timeout_s: float = 10.0) -> int:
        """Ask it to end, kill it after ``timeout_s``, and return the exit code."""
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return self.kill()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        self._process.send_signal(number)

    def kill(self) -> int:
        """Kill it and all processes of its session, and return the exit code.

        Once its exit code is known, nothing is killed: the kernel may have given its number to another process, which
        would be killed as the leader of a group of its own, as each session of PostgreSQL is.
        """
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()


def last_line(text: str) -> str:
    """The log line with the most likely reason of a process's end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("headrace ")]  # the sentence with which our commands end
    telling = [line for line in lines if "FATAL" in line or "error" in line.lower()]
    return (own or telling or lines or ["it said nothing"])[-1]


def _start_log(log: Path) -> None:
    """Create the log's folder, and start a new log if the old one is large; one old log is kept."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def die_with_parent(sent: signal.Signals) -> Callable[[], None]:
    """Return the function that runs in the child before its program, after the change of user, which would reset it."""
    parent = os.getpid()

    def arrange() -> None:
        if _LIBC is None:
            return
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(sent), 0, 0, 0)
        if os.getppid() != parent:  # the parent died between the fork and this line
            os._exit(1)

    return arrange


def working_folder(pid: int) -> Path | None:
    """The current folder of a process; None if it is unknown."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def descendants(pid: int) -> set[int]:
    """All live descendants of ``pid``. Empty without /proc."""
    parents = _parents()
    found, frontier = set[int](), {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def cpu_time_below(pid: int) -> float:
    """Return the CPU time of all live descendants of ``pid``, in seconds. 0 without /proc."""
    ticks = 0
    for below in descendants(pid):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may contain anything. The times in user and in kernel mode are fields 14 and 15.
            ticks += sum(map(int, Path(f"/proc/{below}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def still_alive(pids: Iterable[int]) -> set[int]:
    """Those of ``pids`` that have not ended, even with another parent."""
    return set(pids) & _parents().keys()


def _parents() -> dict[int, int]:
    """The parent of each live process, without zombies."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may contain anything; state and parent follow it.
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.parent.name)] = int(parent)
    return parents

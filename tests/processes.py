"""Starts child processes for tests, and waits for conditions.

A ``Process`` writes stdout and stderr to one file, so that no pipe can fill up and no reader can miss a line. The
kernel ends it when the test process dies; the fixture ``no_process_is_left`` fails a test that leaves one running.
"""

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from headrace.prompts import grammar_trial
from headrace.store.child_process import Child, Command

ROOT = Path(__file__).parents[1]

WAIT_S = 120.0
"""How long a test waits for events that take milliseconds, or the start of a process, on an idle machine."""

_LOOK_S = 0.02
# A process that was asked to stop may take this long before it counts as leaked.
_ENDING_S = 10.0

_FIRST_PORT, _NUM_PORTS = 11_000, 20_000
_ports = count(os.getpid() * 101)

T = TypeVar("T")
What = str | Callable[[], str]


def wait_for(condition: Callable[[], T], what: What = "the condition", timeout_s: float = WAIT_S) -> T:
    """Return the first true value of ``condition()``; fail after ``timeout_s`` with ``what`` in the message."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, _too_late(what, timeout_s)
        time.sleep(_LOOK_S)
    return value


async def until(condition: Callable[[], T], what: What = "the condition", timeout_s: float = WAIT_S) -> T:
    """As ``wait_for``, on an event loop; ``condition`` runs on a thread, since it may ask a server."""
    deadline = time.monotonic() + timeout_s
    while not (value := await asyncio.to_thread(condition)):
        assert time.monotonic() < deadline, _too_late(what, timeout_s)
        await asyncio.sleep(_LOOK_S / 4)
    return value


def _too_late(what: What, timeout_s: float) -> str:
    return f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}"


def free_port() -> int:
    """Return a free port that the system does not assign to another process meanwhile.

    It is below the ephemeral port range; each test process starts at another port.
    """
    while True:
        number = _FIRST_PORT + next(_ports) % _NUM_PORTS
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", number))
            return number


def python(*arguments: str) -> list[str]:
    """Return the command of a Python process with these arguments."""
    return [sys.executable, *arguments]


class Process:
    """One child process. ``env`` is its whole environment; None means ours."""

    def __init__(
        self, argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> None:
        self._log = log
        self._child = Child(Command(log.stem, argv, log, env=env, cwd=cwd))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._child.exit_code

    def log(self) -> str:
        """Everything that it wrote so far."""
        return self._log.read_text(errors="replace")

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Return the events of its structured log, or those with this name."""
        lines = [line for line in self.log().splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
        events = [json.loads(line) for line in lines]
        return [event for event in events if not name or event["event"] == name]

    def wait_log(self, words: str, timeout_s: float = WAIT_S) -> str:
        """Wait until it wrote ``words``; return all that it wrote. Fails at once if it ends without."""
        self._wait(lambda: words in self.log(), f"it wrote {words!r}", timeout_s)
        return self.log()

    def wait_event(self, name: str, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """Wait for an event of its log and return the first of that name. Fails at once if it ends without."""
        self._wait(lambda: self.events(name), f"it logged {name}", timeout_s)
        return self.events(name)[0]

    def _wait(self, seen: Callable[[], object], what: str, timeout_s: float) -> None:
        def seen_or_ended() -> bool:
            has_ended = self.exit_code is not None
            if seen():
                return True
            assert not has_ended, f"exit {self.exit_code} before {what}:\n{self.log()}"
            return False

        wait_for(seen_or_ended, lambda: f"{what}; its log:\n{self.log()}", timeout_s)

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        self._child.send(signal.Signals(number))

    def wait_exit(self, timeout_s: float = WAIT_S) -> int:
        """Wait until it has ended; return its exit code."""
        wait_for(
            lambda: self.exit_code is not None, lambda: f"process {self.pid} ended; its log:\n{self.log()}", timeout_s
        )
        return self.exit_code or 0

    def stop(self) -> None:
        """Kill it in any state, with all processes of its session."""
        self._child.kill()


StartProcess = Callable[..., Process]
"""``start(argv, env=None, cwd=ROOT)``: what the fixture ``start_process`` gives a test."""


@contextmanager
def processes(folder: Path) -> Iterator[StartProcess]:
    """Yield a function that starts processes with their logs in ``folder`` and kills those still running at the end."""
    started: list[Process] = []

    def start(argv: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Process:
        started.append(Process(argv, folder / f"process-{len(started)}.log", env, cwd))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.stop()


_starts: list[str] = ["the first test looks"]
"""The starts of processes since `none_left` looked: to look costs milliseconds, and most tests start none."""
_known: set[psutil.Process] = set()


def _note_starts(event: str, _args: object) -> None:
    if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"):
        _starts.append(event)


sys.addaudithook(_note_starts)


def _children() -> set[psutil.Process]:
    """Return the running children of this process, without zombies.

    Also without the process that compiles grammars and, from Python 3.14 on, the one that multiprocessing starts for
    the lock of a progress bar: each starts once and ends with this process.
    """
    kept = (grammar_trial.__file__, "multiprocessing.resource_tracker")
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            command = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and not any(name in command for name in kept):
                found.add(child)
    return found


@contextmanager
def none_left(spared: Callable[[], set[int]] = set) -> Iterator[None]:
    """Kill children started in the block that still run after it, with their descendants, and fail the test.

    ``spared`` returns the process ids of servers that a test may start again and leave running.
    """
    if _starts:
        _known.clear()
        _starts.clear()
        _known.update(_children())
    yield
    if not _starts and not multiprocessing.active_children():
        return
    started = {child for child in _children() - _known if child.pid not in spared()}
    # A process that was asked to stop just now is not leaked.
    _, left = psutil.wait_procs(started, timeout=_ENDING_S)
    commands = []
    for child in left:
        with suppress(psutil.NoSuchProcess):
            commands.append(f"{child.pid} {' '.join(child.cmdline())}")
            for process in [*child.children(recursive=True), child]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    psutil.wait_procs(left, timeout=_ENDING_S)
    if commands:
        pytest.fail(f"the test left processes running: {'; '.join(commands)}", pytrace=False)

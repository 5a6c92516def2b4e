"""Processes that faults may hit. ``Kept`` is started again a second after it ends, as systemd would: for all alike."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from headrace.store.child_process import Child, Command, descendants

_AGAIN_S = 1.0


class Target(Protocol):
    """Something that a fault may hit."""

    def pids(self) -> list[int]:
        """Its processes, the one that started the others first; empty while it is down."""

    def tend(self) -> None:
        """Called often, by the thread that started it."""


class Kept:
    """A process of the benchmark's own."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._child = Child(command)
        self._again_at: float | None = None

    def pids(self) -> list[int]:
        return [self._child.pid, *sorted(descendants(self._child.pid))] if self._child.exit_code is None else []

    def tend(self) -> None:
        """Start it again if it is time."""
        if self._child.exit_code is None:
            return
        if self._again_at is None:
            self._again_at = time.monotonic() + _AGAIN_S
        elif time.monotonic() >= self._again_at:
            self._child, self._again_at = Child(self._command), None

    def stop(self) -> None:
        """End it for good, with everything in its session."""
        self._child.stop(5)
        self._child.kill()


class Found:
    """A process that something else starts again: the one whose command line satisfies ``is_it``, below ``root``."""

    def __init__(self, root: Callable[[], Sequence[int]], is_it: Callable[[str], bool], place: int = 0) -> None:
        """``place``: its place among those that do, by age."""
        self._root = root
        self._is_it = is_it
        self._place = place

    def pids(self) -> list[int]:
        found = sorted(pid for pid in self._root() if self._is_it(_command_line(pid)))
        return found[self._place : self._place + 1]

    def tend(self) -> None:
        """Nothing to do."""


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""

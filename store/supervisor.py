"""Supervises processes: knows when they are ready, restarts them, stops them.

A process that ends before it was ready is not restarted, because its reason (a model that cannot be loaded, a port)
would be the same again. Its last log line becomes the error. Nor is one that ends with the exit code ``NOT_AGAIN``.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.store.child_process import Child, Command, last_line
from headrace.store.errors import HeadraceError, Unavailable

NOT_AGAIN = 65  # EX_DATAERR
"""The exit code of a process that must not be restarted, such as a worker whose model version was rejected."""

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0


class Supervised(Protocol):
    """A process that can be restarted: a server or a ``Program``."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        ...

    @property
    def child(self) -> Child | None:
        """The process after ``start``."""
        ...

    def start(self) -> None:
        """Start it, or restart it."""
        ...

    def stop(self) -> None:
        """Stop it if it runs."""
        ...


class Program:
    """A process that is ready some time after its start. ``is_ready`` is polled until it is true.

    ``stop_s``: time limit for its end.
    """

    def __init__(self, command: Command, is_ready: Callable[[Child], bool], stop_s: float = 10.0) -> None:
        self.name = command.name
        self._command = command
        self._is_ready = is_ready
        self._stop_s = stop_s
        self._child: Child | None = None

    @property
    def child(self) -> Child | None:
        """The process after ``start``; it may have ended."""
        return self._child

    def start(self) -> None:
        """Start it and return at once."""
        self._child = Child(self._command)

    def stop(self) -> None:
        """Ask it to end, and kill it after its time limit."""
        if self._child is not None:
            self._child.stop(self._stop_s)
            self._child = None

    def is_ready(self) -> bool:
        """True once it is ready. Raises Unavailable with its last log line if it has ended."""
        if self._child is None:
            return False
        if self._child.exit_code is not None:
            is_killed = self._child.exit_code < 0
            why = _how(self._child.exit_code) if is_killed else last_line(self._child.log_tail())
            raise Unavailable(f"{self.name} ended: {why} (log: {self._command.log})")
        return self._is_ready(self._child)


@dataclass
class _Watched:
    """A process with its restarts. ``retry_at``: time of the next start, None while it runs.

    ``is_given_up``: it said that it must not be restarted.
    """

    process: Supervised
    started_at: float
    pause_s: float = _FIRST_PAUSE_S
    retry_at: float | None = None
    is_given_up: bool = False


class Supervisor:
    """Watches processes that were ready. ``say`` gets a message when one has ended or was restarted."""

    def __init__(
        self, processes: Sequence[Supervised], say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._watched = [_Watched(process, clock()) for process in processes]
        self._say = say
        self._clock = clock

    def tend(self) -> None:
        """Check all processes once: record those that ended, restart those that are due."""
        now = self._clock()
        for watched in self._watched:
            if watched.retry_at is None:
                self._note(watched, now)
            elif now >= watched.retry_at:
                self._restart(watched, now)

    def _note(self, watched: _Watched, now: float) -> None:
        child = watched.process.child
        if child is None or child.exit_code is None or watched.is_given_up:
            return
        if child.exit_code == NOT_AGAIN:
            watched.is_given_up = True
            self._say(f"{watched.process.name} ended: {last_line(child.log_tail())}; it is not started again")
            return
        if now - watched.started_at > _STEADY_S:
            watched.pause_s = _FIRST_PAUSE_S
        watched.retry_at = now + watched.pause_s
        how = _how(child.exit_code)
        # A killed process logged no reason; its last log line is about something else.
        why = f": {last_line(child.log_tail())}" if child.exit_code >= 0 else ""
        self._say(f"{watched.process.name} ended ({how}){why}; again in {watched.pause_s:.0f} s")
        watched.pause_s = min(_LONGEST_PAUSE_S, watched.pause_s * 2)

    def _restart(self, watched: _Watched, now: float) -> None:
        watched.started_at, watched.retry_at = now, None
        try:
            watched.process.start()
        except HeadraceError as error:
            watched.retry_at = now + watched.pause_s
            self._say(f"{error.message}; again in {watched.pause_s:.0f} s")
            watched.pause_s = min(_LONGEST_PAUSE_S, watched.pause_s * 2)
        else:
            self._say(f"{watched.process.name} started again")


def _how(exit_code: int) -> str:
    return f"signal {-exit_code}" if exit_code < 0 else f"exit {exit_code}"

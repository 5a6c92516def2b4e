"""Runs the duties of the dispatcher, each at its own period and apart from the others.

A duty may wait for a lock or for a slow statement, so each has a thread; duties that share state in memory have one
together (``DutyGroup``). What a duty raises is logged and counted, and the duty is tried again at its next turn: only
the lead itself (``store.db.leader_election``) decides whether the process goes on leading.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from headrace.store.errors import Unavailable

log = structlog.get_logger(__name__)

# Duties of a group that are due within this time run at once, so that the thread wakes up once for all of them.
_TOGETHER_S = 0.05
_RETRY_S = 1.0


@dataclass(slots=True)
class Duty:
    """A task that runs every ``period_s`` seconds if it is needed then, or at once after ``run`` has returned True.

    ``run`` does a batch and returns whether there may be more to do.
    """

    name: str
    period_s: float
    run: Callable[[], bool | None]
    is_needed: Callable[[], bool] = lambda: True
    due_at: float = 0.0
    is_failing: bool = False


@dataclass(slots=True)
class DutyGroup:
    """Duties that never run at the same time. Times are of the monotonic clock.

    ``on_failure`` gets the name of a duty that failed. ``running``: the duty that runs now; ``began_at``: since when.
    """

    duties: Sequence[Duty]
    on_failure: Callable[[str], None]
    running: str | None = None
    began_at: float = 0.0

    def run_due(self, may_begin: Callable[[], bool] = lambda: True) -> float:
        """Run each due duty once; return when to look again. No duty is begun once ``may_begin`` returns False."""
        for duty in self.duties:
            is_due = duty.due_at <= time.monotonic() + _TOGETHER_S and duty.is_needed()
            if is_due and may_begin():
                self.running, self.began_at = duty.name, time.monotonic()
                try:
                    has_more = self._run_one(duty)
                finally:
                    self.running = None
                pause_s = max(duty.period_s, _RETRY_S) if duty.is_failing else duty.period_s
                duty.due_at = time.monotonic() + (0.0 if has_more else pause_s)
        now = time.monotonic()
        return min(duty.due_at if duty.is_needed() else now + duty.period_s for duty in self.duties)

    def _run_one(self, duty: Duty) -> bool:
        """Run a duty once; return whether it has more to do."""
        has_more = None
        try:
            has_more = duty.run()
        except Unavailable as error:
            # Logged once, not at every try of a long outage.
            if not duty.is_failing:
                log.warning("dispatcher.duty_failed", duty=duty.name, error=error.message)
            self._failed(duty)
        except Exception:
            log.exception("dispatcher.duty_failed", duty=duty.name)
            self._failed(duty)
        else:
            if duty.is_failing:
                log.info("dispatcher.duty_recovered", duty=duty.name)
            duty.is_failing = False
        return bool(has_more)

    def _failed(self, duty: Duty) -> None:
        duty.is_failing = True
        self.on_failure(duty.name)


class DutyThreads:
    """A thread for each group. They run duties while they are switched on."""

    def __init__(self, groups: Sequence[DutyGroup]) -> None:
        self._groups = groups
        self._changed = threading.Condition()
        self._is_on = self._is_stopping = False
        self._threads = [
            threading.Thread(target=self._run, args=(group,), name=group.duties[0].name, daemon=True)
            for group in groups
        ]

    def start(self) -> None:
        """Start the threads, switched off. Call it once."""
        for thread in self._threads:
            thread.start()

    def switch_on(self) -> None:
        """Let duties run."""
        with self._changed:
            self._is_on = True
            self._changed.notify_all()

    def switch_off(self, timeout_s: float) -> None:
        """Begin no more duties; wait at most ``timeout_s`` seconds for those that run. One that is longer may end."""
        with self._changed:
            self._is_on = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(group.running is None for group in self._groups), timeout_s)

    def stop(self) -> None:
        """End the threads that wait. The others end after their duty."""
        with self._changed:
            self._is_on, self._is_stopping = False, True
            self._changed.notify_all()

    @property
    def longest_s(self) -> float:
        """How long the duty that began first has been running, in seconds; 0 if none runs."""
        return max((self._ran_s(group) for group in self._groups), default=0.0)

    def check(self, longest_s: float) -> str:
        """Return ``ok``, or which duty has run for more than ``longest_s``."""
        for group in self._groups:
            name, ran_s = group.running, self._ran_s(group)
            if name is not None and ran_s > longest_s:
                return f"the duty {name} has run for {ran_s:.0f} s"
        return "ok"

    def _ran_s(self, group: DutyGroup) -> float:
        return time.monotonic() - group.began_at if group.running is not None else 0.0

    def _run(self, group: DutyGroup) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_on or self._is_stopping)
                if self._is_stopping:
                    return
            next_at = group.run_due(lambda: self._is_on)
            with self._changed:
                if not self._is_on:
                    self._changed.notify_all()  # ``switch_off`` waits
                self._changed.wait_for(lambda: not self._is_on, max(0.0, next_at - time.monotonic()))

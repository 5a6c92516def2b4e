"""The keeper of periodic duties: each runs at its own period, within its own limits, and apart from the others.

A duty may wait for a lock or for a slow statement, so each has a thread; duties that share state in memory have one
together (``DutyGroup``). So the number of threads is bounded by that of the duties. What a duty raises is logged and
counted, and the duty is tried again at its next turn.

The dispatcher that leads has a keeper, and so has the API process that leads, for duties that need the storage of files
or prepare jobs. Only the lead itself (``store.db.leader_election``) decides whether a process goes on.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog

from headrace.store.db.database import time_limits
from headrace.store.db.leader_election import Leadership
from headrace.store.errors import Unavailable
from headrace.store.periodic import UNTIL_WOKEN, Periodic

log = structlog.get_logger(__name__)

# Duties of a group that are due within this time run at once, so that the thread wakes up once for all of them.
_TOGETHER_S = 0.05
_RETRY_S = 1.0
BUDGET_S = 60.0
"""A turn that takes longer counts as hung, if its duty has no budget of its own."""


class PartsFailed(Exception):
    """Parts of a turn failed, by name; the others have run. ``has_more``: one of them may have more to do."""

    def __init__(self, errors: Mapping[str, Exception], *, has_more: bool) -> None:
        super().__init__(", ".join(errors))
        self.errors = errors
        self.has_more = has_more


def run_parts(parts: Iterable[tuple[str, Callable[[], bool | None]]]) -> bool:
    """Run each part of a turn, such as one for each tenant; return whether one may have more to do.

    A part that fails stops no other. Raises PartsFailed in the end.
    """
    errors: dict[str, Exception] = {}
    has_more = False
    for name, run in parts:
        try:
            has_more |= bool(run())
        except Exception as error:  # noqa: BLE001 - it is logged and counted by the keeper
            errors[name] = error
    if errors:
        raise PartsFailed(errors, has_more=has_more) from next(iter(errors.values()))
    return has_more


def _do_nothing() -> None:
    """No keeper has the duty yet."""


@dataclass(slots=True)
class Duty:
    """A task that runs every ``period_s`` seconds if it is needed then, or at once after ``run`` has returned True.

    ``run`` does a batch and returns whether there may be more to do. A turn that takes longer than ``budget_s`` counts
    as hung. ``lock_timeout_s`` and ``statement_timeout_s`` bound its statements; None: as the process has them. After a
    turn with more to do the duty rests for ``rest`` times as long, so that Postgres serves others. ``wake`` lets it run
    now. ``begin`` is called before the first turn of each time that the process leads.
    """

    name: str
    period_s: float
    run: Callable[[], bool | None]
    is_needed: Callable[[], bool] = lambda: True
    budget_s: float = BUDGET_S
    lock_timeout_s: float | None = None
    statement_timeout_s: float | None = None
    rest: float = 0.0
    begin: Callable[[], None] = _do_nothing
    due_at: float = 0.0
    is_failing: bool = False
    is_woken: bool = False
    is_new: bool = True
    wake: Callable[[], None] = field(default=_do_nothing, repr=False)


OnTurn = Callable[[str, float, int], None]
"""Gets the name of a duty, the seconds of a turn, and how many of its parts failed."""


@dataclass(slots=True)
class DutyGroup:
    """Duties that never run at the same time. Times are of the monotonic clock.

    ``running``: the duty that runs now; ``began_at``: since when.
    """

    duties: Sequence[Duty]
    on_turn: OnTurn
    running: Duty | None = None
    began_at: float = 0.0

    def run_due(self, may_begin: Callable[[], bool] = lambda: True) -> float:
        """Run each due duty once; return when to look again. No duty is begun once ``may_begin`` returns False."""
        for duty in self.duties:
            is_due = duty.due_at <= time.monotonic() + _TOGETHER_S and duty.is_needed()
            if (is_due or duty.is_woken) and may_begin():
                self._run_now(duty)
        now = time.monotonic()
        return min(duty.due_at if duty.is_needed() else now + duty.period_s for duty in self.duties)

    def _run_now(self, duty: Duty) -> None:
        duty.is_woken = False
        self.running, self.began_at = duty, time.monotonic()
        try:
            has_more = self._run_one(duty)
        finally:
            self.running = None
        now = time.monotonic()
        if has_more:
            pause_s = _RETRY_S if duty.is_failing else duty.rest * (now - self.began_at)
        else:
            pause_s = max(duty.period_s, _RETRY_S) if duty.is_failing else duty.period_s
        duty.due_at = now + pause_s

    def _run_one(self, duty: Duty) -> bool:
        """Run a duty once; return whether it has more to do."""
        has_more: bool | None = None
        errors: Mapping[str, Exception] = {}
        try:
            with time_limits(lock_s=duty.lock_timeout_s, statement_s=duty.statement_timeout_s):
                if duty.is_new:
                    duty.begin()
                    duty.is_new = False
                has_more = duty.run()
        except PartsFailed as failed:
            has_more, errors = failed.has_more, failed.errors
        except Exception as error:  # noqa: BLE001 - a defect in one duty must not stop it, or others
            errors = {"": error}
        for part, failure in errors.items():
            _log_failure(duty, {"part": part} if part else {}, failure)
        if duty.is_failing and not errors:
            log.info("duty_recovered", duty=duty.name)
        duty.is_failing = bool(errors)
        self.on_turn(duty.name, time.monotonic() - self.began_at, len(errors))
        return bool(has_more)


def _log_failure(duty: Duty, part: Mapping[str, str], error: Exception) -> None:
    if not isinstance(error, Unavailable):
        log.error("duty_failed", duty=duty.name, **part, exc_info=error)
    elif not duty.is_failing:
        # Logged once, not at every try of a long outage.
        log.warning("duty_failed", duty=duty.name, **part, error=error.message)


class Keeper:
    """A thread for each group. They run duties while they are switched on."""

    def __init__(self, groups: Iterable[Sequence[Duty]], on_turn: OnTurn) -> None:
        self._groups = [DutyGroup(duties, on_turn) for duties in groups]
        self._changed = threading.Condition()
        self._is_on = False
        self._threads = [
            Periodic(group.duties[0].name, partial(self._turn, group), UNTIL_WOKEN) for group in self._groups
        ]
        for group, thread in zip(self._groups, self._threads, strict=True):
            for duty in group.duties:
                duty.wake = partial(_wake, duty, thread)

    @property
    def duties(self) -> list[Duty]:
        """All duties."""
        return [duty for group in self._groups for duty in group.duties]

    def start(self) -> None:
        """Start the threads, switched off. Call it once."""
        for thread in self._threads:
            thread.start()

    def keep(
        self,
        lead: Leadership,
        stopping: threading.Event,
        look_s: float,
        *,
        on_look: Callable[[], None] = _do_nothing,
        stop_s: float = 0.5,
    ) -> None:
        """Let the duties run until stopped, and look every ``look_s`` seconds if the lead is held.

        Raises Unavailable if the lead is lost. Waits ``stop_s`` seconds for duties that still run; they may end later.
        """
        for duty in self.duties:
            duty.is_new = True
        self._switch(is_on=True)
        try:
            while not stopping.wait(look_s):
                on_look()
                lead.check()
        finally:
            self._switch(is_on=False)
            with self._changed:
                self._changed.wait_for(lambda: all(group.running is None for group in self._groups), stop_s)

    def stop(self) -> None:
        """End the threads that wait. The others end after their duty."""
        self._is_on = False
        for thread in self._threads:
            thread.stop(0)

    @property
    def longest_s(self) -> float:
        """How long the longest turn has been running, in seconds; 0 if none runs.

        Of a duty with a longer budget than ``BUDGET_S`` as many seconds are left out as it is longer.
        """
        running = [(group.running, _ran_s(group)) for group in self._groups]
        return max((ran_s - max(0.0, duty.budget_s - BUDGET_S) for duty, ran_s in running if duty), default=0.0)

    def check(self) -> str:
        """Return ``ok``, or which duty has run for longer than its budget."""
        for group in self._groups:
            duty, ran_s = group.running, _ran_s(group)
            if duty is not None and ran_s > duty.budget_s:
                return f"the duty {duty.name} has run for {ran_s:.0f} s"
        return "ok"

    def _switch(self, *, is_on: bool) -> None:
        self._is_on = is_on
        for thread in self._threads:
            thread.wake()

    def _turn(self, group: DutyGroup) -> float:
        if self._is_on:
            next_at = group.run_due(lambda: self._is_on)
            if self._is_on:
                return max(0.0, next_at - time.monotonic())
        with self._changed:
            self._changed.notify_all()  # ``keep`` waits
        return UNTIL_WOKEN


def _wake(duty: Duty, thread: Periodic) -> None:
    duty.is_woken = True
    thread.wake()


def _ran_s(group: DutyGroup) -> float:
    return time.monotonic() - group.began_at if group.running is not None else 0.0

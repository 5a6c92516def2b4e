"""How many workers a queue needs: a pure function of what waits, runs and was measured. Drivers start and drain them.

What raises the number is a wait: the queued tokens of a class and of better ones, divided by the measured rate of a
worker, must start within the patience of the class and before its earliest deadline. What holds the number is the load:
the tokens that started lately. Without that, enough workers would empty the queue, and an empty queue would take them
away again. A number falls only after a cool-down, to the most that was needed meanwhile.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from headrace.store.payloads.job_payload import CLASS_NAMES, CLASS_RANKS, ServiceClass

PATIENCE: Mapping[int, float] = {
    CLASS_RANKS[ServiceClass.INTERACTIVE]: 0.25,
    CLASS_RANKS[ServiceClass.STANDARD]: 1.0,
    CLASS_RANKS[ServiceClass.BATCH]: 20.0,
}
"""The wait that a class accepts, as a multiple of ``ScaleLimits.wait_s``."""

# Workers are held as if each could take this share of its measured rate: at the whole of it a queue never empties.
_UTILISATION = 0.8
# A job must end before its deadline, not start.
_DEADLINE_SHARE = 0.8
# However long work has waited already, this share of its patience is the time to start it in.
_LEAST_SHARE = 0.25
# After so long without a decision nothing is known of the time between.
_GAP_S = 30.0


@dataclass(frozen=True, slots=True)
class ScaleLimits:
    """The bounds of a queue's workers. Times are in seconds.

    ``wait_s``: how long standard jobs may wait; ``PATIENCE`` has the other classes. ``cool_down_s``: a number falls
    after so long. ``zero_after_s``: the last worker leaves after so long without jobs, if ``least`` is 0.
    """

    least: int
    most: int
    wait_s: float = 20.0
    cool_down_s: float = 60.0
    zero_after_s: float = 300.0

    def within(self, replicas: int) -> int:
        """Return the number within the bounds."""
        return min(self.most, max(self.least, replicas))


@dataclass(frozen=True, slots=True)
class WaitingClass:
    """The queued jobs of one class: their tokens (prompt and ``max_tokens``), the oldest age, the earliest deadline."""

    class_rank: int
    tokens: int
    oldest_age_s: float = 0.0
    deadline_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue now. ``at``: seconds of a clock that all decisions share. A paused queue has nothing waiting.

    ``workers``: live ones. ``slots``: jobs that one of them runs at a time, if known. ``load_tokens_per_s``: tokens of
    the jobs that started lately. ``worker_tokens_per_s``: the tokens that one worker starts in a second while jobs
    wait, if measured lately. ``cold_start_s``: an estimate for a queue whose starts were not seen yet.
    """

    at: float
    waiting: tuple[WaitingClass, ...] = ()
    running_jobs: int = 0
    workers: int = 0
    slots: int | None = None
    load_tokens_per_s: float = 0.0
    worker_tokens_per_s: float | None = None
    cold_start_s: float = 10.0

    @property
    def tokens(self) -> int:
        """All queued tokens."""
        return sum(one.tokens for one in self.waiting)


@dataclass(frozen=True, slots=True)
class ScaleHistory:
    """What the next decision needs of those before. Times are those of ``QueueState.at``.

    ``changed_at``: when the number changed. ``held_at``: when so many workers were last needed; ``peak``: the most that
    was needed since. ``raised_at``: when workers were asked for that have not come yet. ``cold_start_s``: how long the
    last ones took.
    """

    replicas: int = 0
    decided_at: float = 0.0
    changed_at: float = 0.0
    held_at: float = 0.0
    peak: int = 0
    busy_at: float = 0.0
    raised_at: float | None = None
    cold_start_s: float | None = None
    worker_tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The number of workers that the queue should have, and why. ``history``: for the next decision."""

    replicas: int
    reason: str
    history: ScaleHistory


@dataclass(frozen=True, slots=True)
class _Need:
    replicas: int
    reason: str


def decide(state: QueueState, limits: ScaleLimits, history: ScaleHistory) -> Decision:
    """Return how many workers the queue should have now. The lives of single workers change nothing."""
    seen = _seen(state, limits, history)
    current = seen.replicas
    need = max(_needs(state, limits, seen), key=lambda one: one.replicas)
    wanted = limits.within(need.replicas)
    if wanted >= current:
        return _decided(state, seen, wanted, _bounded(need, limits))
    seen = replace(seen, peak=max(seen.peak, wanted))
    lower_s, idle_s = state.at - seen.held_at, state.at - seen.busy_at
    target = seen.peak if lower_s >= limits.cool_down_s else current
    if target == 0 and idle_s < limits.zero_after_s:
        reason = f"idle for {idle_s:.0f} s; the last worker leaves after {limits.zero_after_s:.0f} s"
        return _decided(state, seen, 1, reason) if current > 1 else _kept(state, seen, reason)
    if target == current:
        rest_s = max(0.0, limits.cool_down_s - lower_s)
        return _kept(state, seen, f"{wanted} would do; the number stays for {rest_s:.0f} s")
    why = f"idle for {idle_s:.0f} s" if target == 0 else f"no more were needed for {lower_s:.0f} s"
    return _decided(state, seen, target, why)


def _seen(state: QueueState, limits: ScaleLimits, history: ScaleHistory) -> ScaleHistory:
    """Return the history with what the state says of time, rate and starts, within limits that may be new."""
    found = replace(
        history,
        replicas=limits.within(history.replicas),
        worker_tokens_per_s=state.worker_tokens_per_s or history.worker_tokens_per_s,
    )
    is_gap = state.at - history.decided_at > _GAP_S
    if is_gap:
        found = replace(found, held_at=state.at, peak=0, raised_at=None)
    if is_gap or state.tokens or state.running_jobs:
        found = replace(found, busy_at=state.at)
    if found.raised_at is not None and state.workers >= found.replicas:
        found = replace(found, raised_at=None, cold_start_s=state.at - found.raised_at)
    return found


def _decided(state: QueueState, seen: ScaleHistory, replicas: int, reason: str) -> Decision:
    """Return the number, which is new or was needed: the cool-down begins."""
    change = replicas - seen.replicas
    raised_at = None if change < 0 else seen.raised_at
    if change > 0 and raised_at is None:
        raised_at = state.at
    history = replace(
        seen,
        replicas=replicas,
        decided_at=state.at,
        changed_at=state.at if change else seen.changed_at,
        held_at=state.at,
        peak=0,
        raised_at=raised_at,
    )
    return Decision(replicas, reason, history)


def _kept(state: QueueState, seen: ScaleHistory, reason: str) -> Decision:
    """Return the number as it is, although fewer would do."""
    return Decision(seen.replicas, reason, replace(seen, decided_at=state.at))


def _bounded(need: _Need, limits: ScaleLimits) -> str:
    if need.replicas > limits.most:
        return f"{need.reason}: {need.replicas} are needed, {limits.most} is the most"
    return need.reason if need.replicas >= limits.least else f"{need.reason}; {limits.least} is the least"


def _needs(state: QueueState, limits: ScaleLimits, seen: ScaleHistory) -> Iterable[_Need]:
    """Yield what asks for workers: each class that waits, the load, and jobs that run."""
    rate, tokens = seen.worker_tokens_per_s, 0
    for one in sorted(state.waiting, key=lambda one: one.class_rank):
        tokens += one.tokens
        if one.tokens and rate is None:
            yield _without_rate(one, state, limits, seen)
        elif one.tokens and rate is not None:
            yield _of_class(one, tokens, rate, state, limits, seen)
    # Neither load nor running jobs ask for a worker more: they run already.
    if rate is not None:
        needed = math.ceil(state.load_tokens_per_s / (rate * _UTILISATION))
        told = f"{state.load_tokens_per_s:,.0f} tokens/s start, {rate:,.0f} tokens/s of a worker"
        yield _Need(min(seen.replicas, needed), told)
    if state.running_jobs:
        needed = math.ceil(state.running_jobs / state.slots) if state.slots else 1
        yield _Need(min(max(1, seen.replicas), needed), f"{state.running_jobs:,} jobs run")
    yield _Need(0, "nothing waits or runs")


def _of_class(
    one: WaitingClass, tokens: int, rate: float, state: QueueState, limits: ScaleLimits, seen: ScaleHistory
) -> _Need:
    """Return what the class needs. ``tokens``: its own and those of better classes. ``rate``: of one worker."""
    left_s, is_due = _time_left(one, limits)
    cold_s = state.cold_start_s if seen.cold_start_s is None else seen.cold_start_s
    together = rate * seen.replicas
    told = f"{tokens:,} tokens wait ({CLASS_NAMES[one.class_rank]}), {rate:,.0f} tokens/s of a worker"
    if tokens <= together * left_s:
        return _Need(math.ceil(tokens / (rate * left_s)), told)
    if tokens <= together * cold_s:
        return _Need(seen.replicas, f"{told}: they start before another worker is ready")
    after_s = max(left_s - cold_s, _LEAST_SHARE * left_s)
    needed = math.ceil((tokens - together * cold_s) / (rate * after_s))
    until = f"{left_s:.0f} s are left{' before a deadline' if is_due else ''}"
    return _Need(max(seen.replicas, needed), f"{told}, {until}")


def _without_rate(one: WaitingClass, state: QueueState, limits: ScaleLimits, seen: ScaleHistory) -> _Need:
    """Return one worker more if those that there are have come, and had time, and jobs still wait for too long."""
    told = "the rate of a worker is not known"
    had_time = state.workers >= seen.replicas and state.at - seen.changed_at > limits.wait_s
    if seen.replicas and had_time and one.oldest_age_s > limits.wait_s * PATIENCE[one.class_rank]:
        return _Need(seen.replicas + 1, f"jobs wait for {one.oldest_age_s:.0f} s, and {told}")
    return _Need(max(1, seen.replicas), f"{one.tokens:,} tokens wait, and {told}")


def _time_left(one: WaitingClass, limits: ScaleLimits) -> tuple[float, bool]:
    """Return in how many seconds the class should start, at least one, and whether a deadline says so."""
    patience_s = limits.wait_s * PATIENCE[one.class_rank]
    left_s = max(patience_s - one.oldest_age_s, _LEAST_SHARE * patience_s)
    due_s = math.inf if one.deadline_in_s is None else _DEADLINE_SHARE * one.deadline_in_s
    return max(1.0, min(left_s, due_s)), due_s < left_s

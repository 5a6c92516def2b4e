"""Which model versions have a place on a machine: what to start and what to drain, as a pure function.

A version has a place while a worker process for it runs. The places share a memory budget. In each round:

1. A version that waits and fits into free memory is started.
2. Else the versions drain that another one may displace, the least recently used first: those that are idle, those
   whose turn is over, and those with much less pressure. Pressure is waiting tokens times seconds, weighted by class.
3. A version that waits for longer than ``turn_s`` is overdue. Overdue versions come first, the longest wait first, and
   memory is kept free for the first of them. So no version starves: ``Rules.longest_wait_s`` is the bound.

A swap costs the time of a drain and a load, in which the place computes nothing. So a version keeps its place for a
multiple of that time, and swaps take a bounded part of all time.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from headrace.store.hosts.host_reports import PlaceState
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass

CLASS_WEIGHT: Mapping[int, int] = {
    CLASS_RANKS[ServiceClass.INTERACTIVE]: 16,
    CLASS_RANKS[ServiceClass.STANDARD]: 4,
    CLASS_RANKS[ServiceClass.BATCH]: 1,
}
_URGENT_WEIGHT = 4
_TURN_PER_SWAP = 5
_URGENT_S = 60.0


@dataclass(frozen=True, slots=True)
class Rules:
    """The budget in bytes, and when a version may be displaced.

    ``residence_s``: a version keeps its place for so long at least. ``turn_s``: after so long it gives its place to a
    version that waits. ``factor``: before that it does so if the other one has so many times its pressure. ``drain_s``:
    how long a drain takes at most. ``swap_share``: the share of a place's time that swaps may take.
    """

    budget_bytes: int
    residence_s: float = 10.0
    turn_s: float = 60.0
    factor: float = 4.0
    drain_s: float = 5.0
    swap_share: float = 0.5

    def residence_before(self, load_s: float) -> float:
        """Return the least residence of a version that is displaced by one that loads for ``load_s``."""
        return max(self.residence_s, (load_s + self.drain_s) * (1 - self.swap_share) / self.swap_share)

    def turn_before(self, load_s: float) -> float:
        """Return the turn of a version that is displaced by one that loads for ``load_s``."""
        return max(self.turn_s, _TURN_PER_SWAP * (load_s + self.drain_s))

    def longest_wait_s(self, num_versions: int, load_s: float) -> float:
        """Return the longest wait for a place among ``num_versions`` that load for at most ``load_s``."""
        return self.turn_s + num_versions * (self.turn_before(load_s) + self.drain_s + load_s)


@dataclass(frozen=True, slots=True)
class VersionLoad:
    """A version and the work that waits for it; ``tokens`` 0: none does.

    ``wait_s``: with a place, how long its oldest job has waited; without one, how long the version has waited for it.
    ``class_rank``: the best class that waits. ``deadline_in_s``: the earliest deadline.
    ``running_tokens``: the cost of its running jobs. ``obstacle``: why it cannot be started now.
    """

    queue: str
    memory_bytes: int
    load_s: float
    tokens: int = 0
    wait_s: float = 0.0
    class_rank: int = CLASS_RANKS[ServiceClass.STANDARD]
    deadline_in_s: float | None = None
    running_tokens: int = 0
    obstacle: str | None = None

    @property
    def pressure(self) -> float:
        """Waiting tokens times seconds, weighted by class and deadline."""
        is_urgent = self.deadline_in_s is not None and self.deadline_in_s < _URGENT_S + self.load_s
        weight = CLASS_WEIGHT[self.class_rank] * (_URGENT_WEIGHT if is_urgent else 1)
        return weight * self.tokens * max(self.wait_s, 1.0)

    @property
    def running_pressure(self) -> float:
        """The pressure of its running jobs if they were handed back now."""
        return float(CLASS_WEIGHT[self.class_rank] * self.running_tokens)


@dataclass(frozen=True, slots=True)
class Resident:
    """A version with a place. ``in_state_s``: seconds in its state. ``idle_s``: seconds since it last had a job."""

    queue: str
    memory_bytes: int
    state: PlaceState
    in_state_s: float
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker for the version, and why."""

    queue: str
    reason: str


@dataclass(frozen=True, slots=True)
class Displacement:
    """Drain the worker of the version, and why. ``by``: the version that gets its place; None: the budget is passed."""

    queue: str
    by: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class PlacementPlan:
    """What to start and to drain now. ``refused``: the versions that never fit the budget, with the reason."""

    starts: tuple[Start, ...]
    drains: tuple[Displacement, ...]
    refused: Mapping[str, str]


class _Room:
    """The memory now, and after the drains that are under way, while a round decides."""

    def __init__(self, residents: Sequence[Resident], budget: int) -> None:
        self.now = budget - sum(resident.memory_bytes for resident in residents)
        self.later = self.now + _memory(one for one in residents if one.state is PlaceState.DRAINING)
        self.staying = [one for one in residents if one.state is not PlaceState.DRAINING]

    def take(self, num_bytes: int, *, now: bool) -> None:
        """Take memory of a version that starts now, or after the drains."""
        self.later -= num_bytes
        self.now -= num_bytes if now else 0

    def leave(self, resident: Resident) -> None:
        """Count the memory of a version that is drained."""
        self.staying.remove(resident)
        self.later += resident.memory_bytes


def decide(loads: Sequence[VersionLoad], residents: Sequence[Resident], rules: Rules) -> PlacementPlan:
    """Return what to start and what to drain now."""
    own = {load.queue: load for load in loads}
    refused = {load.queue: too_large(load, rules) for load in loads if load.memory_bytes > rules.budget_bytes}
    room = _Room(residents, rules.budget_bytes)
    drains = _over_budget(room, own)
    starts: list[Start] = []
    for load in waiting_in_order(loads, residents, rules):
        if load.memory_bytes <= min(room.now, room.later):
            room.take(load.memory_bytes, now=True)
            starts.append(Start(load.queue, f"{_work(load)}, and it fits"))
            continue
        displaced = _displaced_by(load, room, own, rules)
        if displaced is not None:
            for resident, why in displaced:
                room.leave(resident)
                drains.append(Displacement(resident.queue, load.queue, f"{why}; {load.queue}: {_work(load)}"))
            room.take(load.memory_bytes, now=False)
        elif load.wait_s >= rules.turn_s:
            break  # what gets free now is kept for this version
    return PlacementPlan(tuple(starts), tuple(drains), refused)


def too_large(load: VersionLoad, rules: Rules) -> str:
    """Return the sentence about a version that never fits."""
    return (
        f"it needs about {mebibytes(load.memory_bytes)}, and the budget of the host is "
        f"{mebibytes(rules.budget_bytes)}: give the host more with --memory"
    )


def mebibytes(num_bytes: int) -> str:
    """Return a number of bytes for people."""
    return f"{num_bytes / (1 << 20):,.0f} MiB"


def waiting_in_order(loads: Iterable[VersionLoad], residents: Iterable[Resident], rules: Rules) -> list[VersionLoad]:
    """Return the versions that wait for a place and may be started: overdue ones first, then by pressure."""
    placed = {resident.queue for resident in residents}
    found = [
        load
        for load in loads
        if load.tokens and load.queue not in placed and not load.obstacle and load.memory_bytes <= rules.budget_bytes
    ]
    return sorted(found, key=lambda load: (*_turn(load, rules), load.queue))


def _turn(load: VersionLoad, rules: Rules) -> tuple[int, float]:
    return (0, -load.wait_s) if load.wait_s >= rules.turn_s else (1, -load.pressure)


def _over_budget(room: _Room, own: Mapping[str, VersionLoad]) -> list[Displacement]:
    """Drain versions while those that stay need more than the budget, because a worker has grown."""
    drains: list[Displacement] = []
    while room.later < 0 and len(room.staying) > 1:
        leaving = min(room.staying, key=lambda one: _least_used(one, own.get(one.queue)))
        room.leave(leaving)
        drains.append(Displacement(leaving.queue, None, "the workers need more memory than the budget"))
    return drains


def _displaced_by(
    load: VersionLoad, room: _Room, own: Mapping[str, VersionLoad], rules: Rules
) -> list[tuple[Resident, str]] | None:
    """Return the residents whose places the version gets, with reasons; empty if drains that are under way are enough,
    None if too few may be displaced."""
    missing = load.memory_bytes - room.later
    chosen: list[tuple[Resident, str]] = []
    for resident in sorted(room.staying, key=lambda one: _least_used(one, own.get(one.queue))):
        why = _why_it_may_go(resident, own.get(resident.queue), load, rules)
        if missing > 0 and why is not None:
            chosen.append((resident, why))
            missing -= resident.memory_bytes
    if missing > 0:
        return None
    for pair in reversed(chosen.copy()):
        if missing + pair[0].memory_bytes <= 0:  # the others are enough
            chosen.remove(pair)
            missing += pair[0].memory_bytes
    return chosen


def _least_used(resident: Resident, load: VersionLoad | None) -> tuple[bool, float]:
    """Order idle residents by the time since their last job, then the others by their residence."""
    is_busy = _is_busy(load)
    return is_busy, -(resident.in_state_s if is_busy else resident.idle_s)


def _is_busy(load: VersionLoad | None) -> bool:
    return load is not None and bool(load.tokens or load.running_tokens)


def _why_it_may_go(resident: Resident, own: VersionLoad | None, other: VersionLoad, rules: Rules) -> str | None:
    """Return why the resident may be displaced by the other version; None: it may not yet."""
    residence_s = resident.in_state_s
    if resident.state is not PlaceState.SERVING or residence_s < rules.residence_before(other.load_s):
        return None
    if own is None or not _is_busy(own):
        return f"idle for {resident.idle_s:.0f} s"
    if residence_s >= rules.turn_before(other.load_s):
        return f"its turn of {rules.turn_before(other.load_s):.0f} s is over"
    if other.pressure >= rules.factor * (own.pressure + own.running_pressure):
        return f"{rules.factor:g} times its work waits elsewhere"
    return None


def _work(load: VersionLoad) -> str:
    return f"{load.tokens:,} tokens wait since {load.wait_s:.0f} s"


def _memory(residents: Iterable[Resident]) -> int:
    return sum(resident.memory_bytes for resident in residents)


def forecast(loads: Sequence[VersionLoad], residents: Sequence[Resident], rules: Rules) -> dict[str, float]:
    """Return in about how many seconds each version without a place would serve if work came now.

    A version that can never be started, or not now, is absent. Turns of others that wait count; an estimate.
    """
    own = {load.queue: load for load in loads}
    free_at = [(0.0, rules.budget_bytes - _memory(residents)), *_ends(residents, own, rules)]
    known = {one.queue: _rest(one, own) for one in residents if one.state is PlaceState.STARTING}
    for load in waiting_in_order(loads, residents, rules):
        starts_s = _when_free(free_at, load.memory_bytes)
        known[load.queue] = starts_s + load.load_s
        free_at += [(0.0, -load.memory_bytes), (known[load.queue] + rules.turn_before(load.load_s), load.memory_bytes)]
    placed = {one.queue for one in residents if one.state is not PlaceState.DRAINING} | known.keys()
    for load in loads:
        if load.queue not in placed and not load.obstacle and load.memory_bytes <= rules.budget_bytes:
            known[load.queue] = _when_free(free_at, load.memory_bytes) + load.load_s
    return {queue: seconds for queue, seconds in known.items() if math.isfinite(seconds)}


def _ends(residents: Iterable[Resident], own: Mapping[str, VersionLoad], rules: Rules) -> Iterator[tuple[float, int]]:
    """Yield when each resident will have left if others wait, and its memory."""
    for one in residents:
        load = own.get(one.queue)
        load_s = load.load_s if load else 0.0
        keeps_s = rules.turn_before(load_s) if _is_busy(load) else rules.residence_before(load_s)
        match one.state:
            case PlaceState.DRAINING:
                yield max(0.0, rules.drain_s - one.in_state_s), one.memory_bytes
            case PlaceState.SERVING:
                yield max(0.0, keeps_s - one.in_state_s) + rules.drain_s, one.memory_bytes
            case PlaceState.STARTING:
                yield _rest(one, own) + keeps_s + rules.drain_s, one.memory_bytes


def _rest(starting: Resident, own: Mapping[str, VersionLoad]) -> float:
    load = own.get(starting.queue)
    return max(1.0, (load.load_s if load else 0.0) - starting.in_state_s)


def _when_free(free_at: Iterable[tuple[float, int]], num_bytes: int) -> float:
    """Return when so much memory is free, if each entry adds its bytes at its time; infinite if never."""
    entries = sorted(free_at)
    free = sum(more for at_s, more in entries if at_s <= 0)
    if free >= num_bytes:
        return 0.0
    for at_s, more in entries:
        free += more if at_s > 0 else 0
        if at_s > 0 and free >= num_bytes:
            return at_s
    return math.inf

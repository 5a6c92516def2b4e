"""The schedule of faults, a pure function of the seed, and the loop that injects them.

Two lanes run in parallel, one for our processes and one for their infrastructure, so that faults overlap in random
combinations. Within a lane one fault ends before the next starts. ``faults`` implements each fault.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from tests.chaos.journal import Journal


@dataclass(frozen=True)
class Kind:
    """A class of faults: its targets, and its duration in seconds with a lease of three."""

    lane: str
    targets: tuple[str, ...]
    for_s: float
    weight: int = 1


OURS = ("api", "worker", "dispatcher")
SIDES = ("all", "api", "worker", "dispatcher")

KINDS: dict[str, Kind] = {
    "kill_api": Kind("processes", ("api",), 2.5),
    "kill_worker": Kind("processes", ("worker",), 2.5, weight=2),
    "kill_call": Kind("processes", ("worker",), 2.5),
    "kill_dispatcher": Kind("processes", ("dispatcher",), 2.5),
    "pause_api": Kind("processes", ("api",), 5.4),
    "pause_worker": Kind("processes", ("worker",), 5.4),
    "pause_at_finish": Kind("processes", ("worker",), 9.0),
    "pause_dispatcher": Kind("processes", ("dispatcher",), 5.4),
    "term_api": Kind("processes", ("api",), 2.0),
    "term_worker": Kind("processes", ("worker",), 2.0),
    "term_dispatcher": Kind("processes", ("dispatcher",), 2.0),
    "term_twice": Kind("processes", OURS, 2.0),
    "poison": Kind("processes", ("engine",), 3.0),
    "engine_hung": Kind("processes", ("engine",), 6.0),
    "engine_raises": Kind("processes", ("engine",), 1.0),
    "out_of_memory": Kind("processes", ("engine",), 1.0),
    "nan_row": Kind("processes", ("engine",), 1.0),
    "clock_off": Kind("processes", ("ahead", "behind"), 8.0),
    "rolling_restart": Kind("processes", ("all",), 14.0),
    "old_release": Kind("processes", ("worker",), 9.0),
    "redis_restart": Kind("services", ("redis",), 2.0),
    "redis_kill": Kind("services", ("redis",), 2.0),
    "redis_wipe": Kind("services", ("redis",), 1.0, weight=2),
    "redis_full": Kind("services", ("redis",), 4.0),
    "redis_readonly": Kind("services", ("redis",), 4.0),
    "redis_half_open": Kind("services", SIDES, 4.0),
    "redis_slow": Kind("services", SIDES, 4.0),
    "redis_cut": Kind("services", SIDES, 3.0),
    "postgres_restart": Kind("services", ("postgres",), 3.0),
    "postgres_kill": Kind("services", ("postgres",), 3.0),
    "postgres_stall": Kind("services", ("postgres",), 5.0),
    "postgres_slow": Kind("services", SIDES, 4.0),
    "postgres_half_open": Kind("services", SIDES, 4.0),
    "postgres_cut": Kind("services", SIDES, 3.0),
    "postgres_reset": Kind("services", SIDES, 1.0),
    "connections_out": Kind("services", ("postgres",), 4.0),
    "disk_full": Kind("services", ("postgres",), 4.0),
}


@dataclass(frozen=True, order=True)
class Strike:
    """One fault: start relative to the run, target, and duration."""

    at_s: float
    fault: str
    target: str
    for_s: float


def schedule(seed: int, duration_s: float, faults: Sequence[str] = tuple(KINDS)) -> list[Strike]:
    """Return the faults of a run, in order. Each occurs at least once; a long run repeats them in new orders."""
    rng = random.Random(f"nemesis {seed}")
    lanes = sorted({KINDS[name].lane for name in faults})
    return sorted(strike for lane in lanes for strike in _lane(rng, lane, duration_s, faults))


def _lane(rng: random.Random, lane: str, duration_s: float, faults: Sequence[str]) -> Iterator[Strike]:
    names = [name for name in faults if KINDS[name].lane == lane for _ in range(KINDS[name].weight)]
    at_s = 0.0
    for turn in count():
        rng.shuffle(names)
        pauses = [rng.uniform(0.3, 1.2) for _ in names]
        # The first round is always complete, with shorter gaps if needed.
        needed_s = sum(pauses) + sum(KINDS[name].for_s for name in names)
        pace = min(1.0, duration_s / needed_s) if turn == 0 else 1.0
        for name, pause_s in zip(names, pauses, strict=True):
            at_s += pause_s * pace
            if turn > 0 and at_s + KINDS[name].for_s > duration_s:
                return
            for_s = KINDS[name].for_s * rng.uniform(0.9, 1.1)
            yield Strike(round(at_s, 2), name, rng.choice(KINDS[name].targets), round(for_s, 2))
            at_s += KINDS[name].for_s * pace


Carry = Callable[[Strike], Iterator[None]]


class Nemesis:
    """Injects faults. ``turn`` never blocks: it advances each fault's generator until it ends."""

    def __init__(
        self,
        strikes: Sequence[Strike],
        carry: Carry,
        journal: Journal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiting = {
            lane: [one for one in strikes if KINDS[one.fault].lane == lane]
            for lane in {KINDS[one.fault].lane for one in strikes}
        }
        self._under_way: dict[str, tuple[Strike, Iterator[None]]] = {}
        self._carry = carry
        self._journal = journal
        self._clock = clock
        self._began = clock()

    @property
    def is_done(self) -> bool:
        """True when every fault has ended."""
        return not self._under_way and not any(self._waiting.values())

    @property
    def num_waiting(self) -> int:
        """Number of faults still to come."""
        return sum(map(len, self._waiting.values()))

    def turn(self) -> None:
        """Start due faults, continue running ones."""
        now = self._clock() - self._began
        for lane, waiting in self._waiting.items():
            if lane not in self._under_way and waiting and waiting[0].at_s <= now:
                strike = waiting.pop(0)
                self._journal.write("strike", fault=strike.fault, target=strike.target, for_s=strike.for_s)
                self._under_way[lane] = (strike, self._carry(strike))
            if lane in self._under_way:
                self._advance(lane)

    def _advance(self, lane: str) -> None:
        strike, running = self._under_way[lane]
        try:
            next(running)
        except StopIteration:
            del self._under_way[lane]
            self._journal.write("strike_over", fault=strike.fault)

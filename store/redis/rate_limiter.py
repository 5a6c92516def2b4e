"""Rate limits with a cost per request, shared by every API process through one Redis script.

The algorithm is GCRA: one number per key, no window edges. While Redis is away each process limits by itself, at its
share of half the rate. So all processes together admit less than the limit, and an outage of Redis neither removes the
limits nor refuses everything. Each process starts from the state of the limits that it saw last in Redis.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import redis
from cachetools import FIFOCache

from headrace.store.redis.connection import AWAY, CircuitBreaker

_SCRIPT = Path(__file__).with_name("gcra.lua")
FALLBACK_SHARE = 0.5
"""The part of a limit that all processes together admit while Redis is away."""

_FALLBACK_KEYS = 10_000
_PAUSE_AFTER_FAILURE_S = 1.0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a request fits. ``retry_after_s`` is 0 if it does, and infinite if its cost never can.

    ``remaining`` is in the limit's units; after ``reset_s`` the whole burst is available again.
    """

    allowed: bool
    remaining: int
    retry_after_s: float
    reset_s: float


_NEVER = Decision(allowed=False, remaining=0, retry_after_s=math.inf, reset_s=0.0)


@dataclass(frozen=True, slots=True)
class Spend:
    """A request for ``cost`` units of ``key``; at most ``burst`` units are spent at once, by default those of a minute.

    A cost of 0 reads the remaining units.
    """

    key: str
    per_minute: int
    cost: int = 1
    burst: int | None = None

    @property
    def most(self) -> int:
        """The most units that are spent at once."""
        return self.burst or self.per_minute


class Limiter:
    """Checks limits. Safe to use from many threads; raises nothing while Redis is away.

    It tries Redis again a second after a failure, and only while ``breaker`` is closed. ``num_processes`` returns the
    number of processes that share the limits.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        breaker: CircuitBreaker | None = None,
        num_processes: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._script = client.register_script(_SCRIPT.read_text())
        self._breaker = breaker
        self._num_processes = num_processes
        self._clock = clock
        self._paused_until = -math.inf
        self._local = _LocalLimiter(clock)

    def check(self, key: str, *, per_minute: int, cost: int = 1, burst: int | None = None) -> Decision:
        """Spend ``cost`` units of ``key`` if they fit; a refusal spends nothing."""
        return self.check_all([Spend(key, per_minute, cost, burst)])[0]

    def check_all(self, spends: Sequence[Spend]) -> list[Decision]:
        """Decide on the spends of one request, of different keys, with one call to Redis.

        All are spent if all decisions allow it; otherwise the decisions that refuse show the reasons.
        """
        if not spends:
            return []
        if any(spend.cost > spend.most for spend in spends):
            return [_NEVER] * len(spends)
        if not self._is_away():
            try:
                return self._shared(spends)
            except AWAY:
                self._note_failure()
        return self._local.check(spends, FALLBACK_SHARE / max(1, self._num_processes()))

    def _is_away(self) -> bool:
        return self._clock() < self._paused_until or (self._breaker is not None and self._breaker.is_away)

    def _note_failure(self) -> None:
        self._paused_until = self._clock() + _PAUSE_AFTER_FAILURE_S
        if self._breaker is not None:
            self._breaker.failed()

    def _shared(self, spends: Sequence[Spend]) -> list[Decision]:
        keys = [f"headrace:limit:{spend.key}" for spend in spends]
        numbers = [value for spend in spends for value in (60e6 / spend.per_minute, spend.most, spend.cost)]
        answers = [_decision(*map(int, answer)) for answer in self._script(keys=keys, args=numbers)]
        self._local.note([(spend.key, answer.reset_s) for spend, answer in zip(spends, answers, strict=True)])
        return answers


def _decision(allowed: int, remaining: int, retry_us: int, reset_us: int) -> Decision:
    return Decision(bool(allowed), max(remaining, 0), retry_us / 1e6, reset_us / 1e6)


class _LocalLimiter:
    """The same algorithm in this process's memory; the keys that were idle longest are dropped first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = Lock()
        self._arrivals: FIFOCache[str, float] = FIFOCache(_FALLBACK_KEYS)

    def note(self, seen: Sequence[tuple[str, float]]) -> None:
        """Copy the reset times of shared limits: this process's shares of them need as long to be full again."""
        with self._lock:
            now = self._clock()
            for key, reset_s in seen:
                self._arrivals[key] = max(self._arrivals.get(key, now), now + reset_s)

    def check(self, spends: Sequence[Spend], share: float) -> list[Decision]:
        """Spend ``share`` of the limits if all of it fits."""
        with self._lock:
            now = self._clock()
            found = [self._look(spend, share, now) for spend in spends]
            fits = all(early_s <= 1e-9 for _, early_s in found)
            return [
                self._decide(spend, share, now, arrival, early_s, spends=fits)
                for spend, (arrival, early_s) in zip(spends, found, strict=True)
            ]

    def _look(self, spend: Spend, share: float, now: float) -> tuple[float, float]:
        unit_s = 60.0 / (spend.per_minute * share)
        arrival = max(self._arrivals.get(spend.key, now), now)
        return arrival, arrival + unit_s * (spend.cost - _burst(spend, share)) - now

    def _decide(
        self, spend: Spend, share: float, now: float, arrival: float, early_s: float, *, spends: bool
    ) -> Decision:
        unit_s, burst = 60.0 / (spend.per_minute * share), _burst(spend, share)
        if spends and spend.cost:
            arrival += unit_s * spend.cost
            self._arrivals[spend.key] = arrival
        remaining = max(int(burst - (arrival - now) / unit_s + 1e-9), 0)
        return Decision(early_s <= 1e-9, remaining, max(early_s, 0.0), arrival - now)


def _burst(spend: Spend, share: float) -> float:
    """Return the most that one process admits at once.

    A cost above the process's share still fits while the process is idle, because a small limit would otherwise refuse
    everything. It must not be more than the limit allows all processes together.
    """
    burst = spend.most * share
    return max(burst, spend.cost) if spend.cost * FALLBACK_SHARE <= burst else burst

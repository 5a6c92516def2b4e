"""Rate limits with a cost per request, shared by every API process through one Redis script.

The algorithm is GCRA: one number per key, no window edges. While Redis is away each process limits on its own, at half
the rate, so that losing Redis neither opens the door nor shuts it.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import redis

from store.redis import AWAY, Watch

_SCRIPT = Path(__file__).with_name("gcra.lua")
_FALLBACK_SHARE = 0.5
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
    """``cost`` units of ``key`` that somebody wants; at most ``burst`` may be spent at once, by default a minute's."""

    key: str
    per_minute: int
    cost: int = 1
    burst: int | None = None

    @property
    def most(self) -> int:
        """Units that may be spent at once."""
        return self.burst or self.per_minute


class Limiter:
    """Checks limits. Safe to use from many threads; never raises for a Redis that is away.

    It asks again a second after a failure, and not before ``watch``, if there is one, has had an answer.
    """

    def __init__(
        self, client: redis.Redis, *, watch: Watch | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._script = client.register_script(_SCRIPT.read_text())
        self._watch = watch
        self._clock = clock
        self._paused_until = -math.inf
        self._local = _LocalLimiter(clock)

    def check(self, key: str, *, per_minute: int, cost: int = 1, burst: int | None = None) -> Decision:
        """Spend ``cost`` units of ``key`` if they fit; a refusal spends nothing."""
        return self.check_all([Spend(key, per_minute, cost, burst)])[0]

    def check_all(self, spends: Sequence[Spend]) -> list[Decision]:
        """Decide on each, in order and each by itself, with one question to Redis."""
        possible = [spend for spend in spends if spend.cost <= spend.most]
        decisions = iter(self._decide(possible) if possible else ())
        return [next(decisions) if spend.cost <= spend.most else _NEVER for spend in spends]

    def _decide(self, spends: Sequence[Spend]) -> list[Decision]:
        if not self._is_away():
            try:
                return self._shared(spends)
            except AWAY:
                self._note_failure()
        return [self._alone(spend) for spend in spends]

    def _alone(self, spend: Spend) -> Decision:
        burst = max(spend.most * _FALLBACK_SHARE, spend.cost)
        return self._local.check(spend.key, spend.per_minute * _FALLBACK_SHARE, spend.cost, burst)

    def _is_away(self) -> bool:
        return self._clock() < self._paused_until or (self._watch is not None and self._watch.is_away)

    def _note_failure(self) -> None:
        self._paused_until = self._clock() + _PAUSE_AFTER_FAILURE_S
        if self._watch is not None:
            self._watch.failed()

    def _shared(self, spends: Sequence[Spend]) -> list[Decision]:
        keys = [f"headrace:limit:{spend.key}" for spend in spends]
        numbers = [number for spend in spends for number in (60e6 / spend.per_minute, spend.most, spend.cost)]
        return [_decision(*map(int, answer)) for answer in self._script(keys=keys, args=numbers)]


def _decision(allowed: int, remaining: int, retry_us: int, reset_us: int) -> Decision:
    return Decision(bool(allowed), max(remaining, 0), retry_us / 1e6, reset_us / 1e6)


class _LocalLimiter:
    """The same algorithm in this process's memory; the keys that were idle longest are forgotten first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = Lock()
        self._arrivals: OrderedDict[str, float] = OrderedDict()

    def check(self, key: str, per_minute: float, cost: float, burst: float) -> Decision:
        """Spend ``cost`` units of ``key`` if they fit."""
        unit_s = 60.0 / per_minute
        with self._lock:
            now = self._clock()
            arrival = max(self._arrivals.get(key, now), now)
            new_arrival = arrival + unit_s * cost
            early_s = new_arrival - unit_s * burst - now
            if early_s > 1e-9:
                return Decision(False, max(int(burst - (arrival - now) / unit_s), 0), early_s, arrival - now)
            self._arrivals[key] = new_arrival
            self._arrivals.move_to_end(key)
            if len(self._arrivals) > _FALLBACK_KEYS:
                self._arrivals.popitem(last=False)
            return Decision(True, max(int(burst - (new_arrival - now) / unit_s), 0), 0.0, new_arrival - now)

"""The faults: one schedule from a seed, the same for every contestant. Knows processes and Redis.

A schedule holds every kind at least once, evenly spread with some chance in it, so that no seed is an easy one.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.compare.kept import Kept
from headrace.cli.local.valkey import LocalValkey
from headrace.store.child_process import descendants
from headrace.store.redis.connection import AWAY, connect


class Kind(StrEnum):
    """A way to break something."""

    KILL_WORKER = "kill_worker"
    """kill -9 of a worker and every process of its, as when its container or machine goes."""
    KILL_ONE = "kill_one"
    """kill -9 of one process that runs jobs, as the kernel does when memory is short."""
    STOP_WORKER = "stop_worker"
    """SIGSTOP past lease and visibility timeout, then SIGCONT: a long pause of a machine or of its network."""
    RESTART_REDIS = "restart_redis"
    """kill -9 of Redis, up again on its append-only file."""
    WIPE_REDIS = "wipe_redis"
    """FLUSHALL: a failover to an empty replica, or an operator's mistake."""
    CUT_REDIS = "cut_redis"
    """Every connection to Redis is closed."""


_SHARES = {
    Kind.KILL_WORKER: 4,
    Kind.KILL_ONE: 3,
    Kind.CUT_REDIS: 3,
    Kind.STOP_WORKER: 1,
    Kind.RESTART_REDIS: 1,
    Kind.WIPE_REDIS: 1,
}
STOP_S = 15.0
"""Longer than Headrace's lease (10 s) and than the visibility timeout given to Celery."""
_REDIS_DOWN_S = 2.0


@dataclass(frozen=True)
class Strike:
    """One fault. ``target`` chooses among workers and processes, whatever their number then is."""

    at_s: float
    kind: Kind
    target: int


def schedule(seed: int, seconds: float) -> list[Strike]:
    """Return the faults of a run, by time; the last one leaves the time that a stop takes."""
    draw = random.Random(seed)
    kinds = [kind for kind, share in _SHARES.items() for _ in range(share)]
    draw.shuffle(kinds)
    room = max(1.0, seconds - STOP_S - 3.0) / len(kinds)
    return [
        Strike(round(3.0 + room * (number + draw.random()), 2), kind, draw.randrange(1 << 16))
        for number, kind in enumerate(kinds)
    ]


class Nemesis:
    """Carries out a schedule against one contestant's workers and Redis. ``tend`` is called often, by one thread."""

    def __init__(self, strikes: Sequence[Strike], workers: Sequence[Kept], valkey: LocalValkey) -> None:
        self._waiting = list(strikes)
        self._workers = workers
        self._valkey = valkey
        self._undo: list[tuple[float, Callable[[], object]]] = []
        self._began = time.monotonic()
        self.struck: Counter[str] = Counter()

    @property
    def is_done(self) -> bool:
        """True once everything was broken and whatever has to be undone is."""
        return not self._waiting and not self._undo

    def tend(self) -> list[Strike]:
        """Inject the faults that are due and return them."""
        now = time.monotonic() - self._began
        for due, undo in [each for each in self._undo if each[0] <= now]:
            self._undo.remove((due, undo))
            undo()
        due_now = [strike for strike in self._waiting if strike.at_s <= now]
        self._waiting = [strike for strike in self._waiting if strike.at_s > now]
        for strike in due_now:
            self.struck[strike.kind] += self._strike(strike, now)
        return due_now

    def _strike(self, strike: Strike, now: float) -> bool:
        """Return whether anything was hit."""
        match strike.kind:
            case Kind.KILL_WORKER | Kind.KILL_ONE:
                return self._kill(strike)
            case Kind.STOP_WORKER:
                return self._stop(strike, now)
            case Kind.RESTART_REDIS:
                return self._restart_redis(now)
            case Kind.WIPE_REDIS | Kind.CUT_REDIS:
                return self._redis(strike.kind)

    def _kill(self, strike: Strike) -> bool:
        alive = [worker for worker in self._workers if worker.pid]
        if not alive:
            return False
        pid = alive[strike.target % len(alive)].pid
        assert pid is not None
        family = sorted(descendants(pid))
        # Who has children runs jobs in them; the parent alone only hands them out.
        runners = family or [pid]
        victims = [pid, *family] if strike.kind is Kind.KILL_WORKER else [runners[strike.target % len(runners)]]
        return _signal_all(victims, signal.SIGKILL)

    def _stop(self, strike: Strike, now: float) -> bool:
        alive = [worker for worker in self._workers if worker.pid]
        if not alive:
            return False
        pid = alive[strike.target % len(alive)].pid
        assert pid is not None
        family = [pid, *descendants(pid)]
        self._undo.append((now + STOP_S, lambda: _signal_all(family, signal.SIGCONT)))
        return _signal_all(family, signal.SIGSTOP)

    def _restart_redis(self, now: float) -> bool:
        child = self._valkey.child
        if child is None:
            return False
        child.kill()
        self._undo.append((now + _REDIS_DOWN_S, self._valkey.start))
        return True

    def _redis(self, kind: Kind) -> bool:
        with suppress(*AWAY), connect(self._valkey.url, timeout_s=5) as client:
            if kind is Kind.WIPE_REDIS:
                client.flushall()
            else:
                for group in ("normal", "pubsub"):
                    client.client_kill_filter(_type=group, skipme=True)
            return True
        return False


def _signal_all(pids: Sequence[int], number: signal.Signals) -> bool:
    """Signal those that are still there; return whether there was one."""
    num_hit = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            num_hit += 1
    return num_hit > 0

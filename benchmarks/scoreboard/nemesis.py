"""The faults: one schedule from a seed, the same for every contestant. Knows processes, Redis and Postgres.

A schedule holds every kind as often as ``_SHARES`` says, evenly spread with some chance in it, so that no seed is an
easy one. A server that was killed is up again after two seconds, on what it wrote to its disk.
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

from benchmarks.queue.services import Services
from benchmarks.scoreboard.kept import Target
from headrace.cli.local.postgres import LocalPostgres
from headrace.cli.local.valkey import LocalValkey
from headrace.store.errors import HeadraceError


class Kind(StrEnum):
    """A way to break something."""

    KILL_WORKER = "kill_worker"
    """kill -9 of a worker and every process of its, as when its container or machine goes."""
    KILL_ONE = "kill_one"
    """kill -9 of one process that runs jobs, as the kernel does when memory is short."""
    STOP_WORKER = "stop_worker"
    """SIGSTOP past every lease and timeout, then SIGCONT: a long pause of a machine or of its network."""
    KILL_DOOR = "kill_door"
    """kill -9 of the API or of another process that takes, hands out or reports jobs."""
    KILL_REDIS = "kill_redis"
    """kill -9 of Redis, up again on its append-only file."""
    KILL_POSTGRES = "kill_postgres"
    """kill -9 of Postgres, up again after it has replayed its log."""


_SHARES = {
    Kind.KILL_WORKER: 3,
    Kind.KILL_ONE: 2,
    Kind.KILL_DOOR: 3,
    Kind.STOP_WORKER: 1,
    Kind.KILL_REDIS: 2,
    Kind.KILL_POSTGRES: 2,
}
STOP_S = 25.0
"""Longer than Headrace's lease, Procrastinate's heartbeats (10 s both) and the others' visibility timeout (20 s)."""
_DOWN_S = 2.0


@dataclass(frozen=True)
class Strike:
    """One fault. ``target`` chooses among workers and processes, whatever their number then is."""

    at_s: float
    kind: Kind
    target: int


def schedule(seed: int, seconds: float) -> list[Strike]:
    """Return the faults of a run, by time; the stop comes first enough to be over when the run is."""
    draw = random.Random(seed)
    kinds = [kind for kind, share in _SHARES.items() for _ in range(share) if kind is not Kind.STOP_WORKER]
    draw.shuffle(kinds)
    kinds.insert(draw.randrange(max(1, int(len(kinds) * (1 - (STOP_S + 3) / seconds)))), Kind.STOP_WORKER)
    room = max(1.0, seconds - 6.0) / len(kinds)
    return [
        Strike(round(3.0 + room * (number + draw.random()), 2), kind, draw.randrange(1 << 16))
        for number, kind in enumerate(kinds)
    ]


class Nemesis:
    """Carries out a schedule against one contestant and its servers. ``tend`` is called often, by one thread."""

    def __init__(
        self, strikes: Sequence[Strike], workers: Sequence[Target], doors: Sequence[Target], services: Services
    ) -> None:
        self._waiting = list(strikes)
        self._workers = workers
        self._doors = doors
        self._services = services
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
            began = time.monotonic()
            try:
                undo()
            except HeadraceError:  # a server that cannot come up yet
                self._undo.append((now + 0.5, undo))
            # A server's start is waited for: the faults behind it keep their distance.
            self._began += time.monotonic() - began
        due_now = [strike for strike in self._waiting if strike.at_s <= now]
        self._waiting = [strike for strike in self._waiting if strike.at_s > now]
        for strike in due_now:
            self.struck[strike.kind] += self._strike(strike, now)
        return due_now

    def _strike(self, strike: Strike, now: float) -> bool:
        """Return whether anything was hit."""
        match strike.kind:
            case Kind.KILL_REDIS:
                return self._kill_server(self._services.valkey, now)
            case Kind.KILL_POSTGRES:
                return self._kill_server(self._services.postgres, now)
        targets = self._doors if strike.kind is Kind.KILL_DOOR else self._workers
        alive = [pids for target in targets if (pids := target.pids())]
        if not alive:
            return False
        pids = alive[strike.target % len(alive)]
        if strike.kind is Kind.STOP_WORKER:
            self._undo.append((now + STOP_S, lambda: _signal_all(pids, signal.SIGCONT)))
            return _signal_all(pids, signal.SIGSTOP)
        if strike.kind is Kind.KILL_ONE:
            # Who has children runs jobs in them; the parent alone only hands them out.
            runners = pids[1:] or pids
            pids = [runners[strike.target % len(runners)]]
        return _signal_all(pids, signal.SIGKILL)

    def _kill_server(self, server: LocalPostgres | LocalValkey, now: float) -> bool:
        child = server.child
        if child is None:
            return False
        child.kill()
        self._undo.append((now + _DOWN_S, server.start))
        return True


def _signal_all(pids: Sequence[int], number: signal.Signals) -> bool:
    """Signal those that are still there; return whether there was one."""
    num_hit = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            num_hit += 1
    return num_hit > 0

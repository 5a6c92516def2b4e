"""What is killed or stopped, each as a generator that the run turns, and the order in which a seed has it done."""

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import redis

from tests.chaos.cluster import Member
from tests.chaos.faults import hold
from tests.failover.cluster import FailoverCluster
from tests.sentinel import Node

DETECT_S = 2.0
"""Time from the death of the primary of Postgres to the promotion: what a manager such as Patroni needs at least."""

PARTS = ("kill_api", "kill_worker", "kill_dispatcher", "redis_failover", "postgres_failover")
AGAIN = ("stop_api", "stop_worker", "stop_dispatcher", "redis_stop", *PARTS)
_STOPPED_S = 16.0  # longer than a lease and a sweep, and than a leader may be silent
_REPLICA_AFTER_S = 3.0
_SETTLED_S = 4.0
_LONGEST_S = 90.0


def plan(seed: int, num_again: int) -> list[tuple[str, ...]]:
    """Return what happens, one after the other: each part once, then ``num_again`` pairs at the same time."""
    rng = random.Random(f"failover {seed}")
    first = [(name,) for name in rng.sample(PARTS, len(PARTS))]
    return first + [tuple(rng.sample(AGAIN, 2)) for _ in range(num_again)]


class FailoverFaults:
    """Does what the plan says."""

    def __init__(self, cluster: FailoverCluster, seed: int) -> None:
        self._cluster = cluster
        self._rng = random.Random(f"targets {seed}")

    def carry(self, name: str) -> Iterator[None]:
        """Yield until the fault and what follows from it are over."""
        verb, _, kind = name.partition("_")
        if verb == "kill":
            yield from self._kill(kind)
        elif verb == "stop":
            yield from self._stop(kind)
        else:
            yield from getattr(self, f"_{name}")()
        yield from hold(_SETTLED_S)

    def _kill(self, kind: str) -> Iterator[None]:
        member = self._pick(kind)
        before = member.pid
        self._cluster.signal(member, signal.SIGKILL)
        yield from self._until(lambda: member.pid != before and self._cluster.is_ready(member))
        if kind == "worker":
            yield from hold(_STOPPED_S - _SETTLED_S)

    def _stop(self, kind: str) -> Iterator[None]:
        member = self._pick(kind)
        self._cluster.signal(member, signal.SIGSTOP)
        yield from hold(_STOPPED_S)
        self._cluster.signal(member, signal.SIGCONT)
        yield from self._until(lambda: self._cluster.is_ready(member))

    def _pick(self, kind: str) -> Member:
        """Any of them, but the leader of the dispatchers."""
        living = [one for one in self._cluster.of_kind(kind) if one.is_alive and not one.is_stopped]
        return leader(self._cluster) if kind == "dispatcher" else self._rng.choice(living)

    def _redis_failover(self) -> Iterator[None]:
        yield from self._replace_primary(signal.SIGKILL)

    def _redis_stop(self) -> Iterator[None]:
        """Stop the primary: its connections stay open and answer nothing."""
        yield from self._replace_primary(signal.SIGSTOP)

    def _replace_primary(self, how: signal.Signals) -> Iterator[None]:
        servers = self._cluster.redis
        old = servers.primary()
        old.signal(how)
        self._cluster.journal.write("signal", member="redis", name=old.name, pid=0, signal=how.name)
        yield from self._until(lambda: servers.primary() is not old)
        self._cluster.journal.write("promoted", service="redis")
        yield from hold(_REPLICA_AFTER_S)
        if how == signal.SIGSTOP:
            old.signal(signal.SIGCONT)
        else:
            old.start()
        yield from self._until(lambda: _follows(servers.primary(), old))

    def _postgres_failover(self) -> Iterator[None]:
        pair = self._cluster.pair
        pair.primary.kill()
        self._cluster.journal.write("exit", member="postgres", name=pair.primary.host, pid=0, code=-9)
        yield from hold(DETECT_S)
        pair.fail_over()
        self._cluster.journal.write("promoted", service="postgres")
        yield from hold(_REPLICA_AFTER_S)
        yield from pair.rejoining()

    def _until(self, condition: Callable[[], bool]) -> Iterator[None]:
        deadline = time.monotonic() + _LONGEST_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {_LONGEST_S:.0f} s (logs in {self._cluster.folder})")
            yield


def leader(cluster: FailoverCluster) -> Member:
    """Return the dispatcher that was the last to begin to lead."""
    return max(cluster.of_kind("dispatcher"), key=lambda one: (led_from(cluster, one.name) or [""])[-1])


def led_from(cluster: FailoverCluster, name: str) -> list[str]:
    """Return the times at which this dispatcher began to lead, as its log has them."""
    lines = cluster.log_of(name).read_text(errors="replace").splitlines()
    return [str(json.loads(line)["timestamp"]) for line in lines if '"dispatcher.leading"' in line]


def _follows(primary: Node, old: Node) -> bool:
    if primary is old:
        return False
    with suppress(redis.RedisError):
        return bool(old.ask("INFO", "replication").get("master_link_status") == "up")
    return False

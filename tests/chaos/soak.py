"""One run: a cluster, customers, faults, a quiet time in which all jobs must end, and the check."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from headrace.store.child_process import Child, Command
from headrace.store.ports import free_port
from headrace.store.settings import child_environment
from tests.chaos.caller import CallingCluster
from tests.chaos.checker import Findings, check
from tests.chaos.cluster import ROOT, Cluster, Shape, running_cluster
from tests.chaos.faults import Faults
from tests.chaos.history import History, read_history
from tests.chaos.journal import Journal
from tests.chaos.load import Load, LoadThread, Order, marked, orders, with_flows
from tests.chaos.nemesis import KINDS, Nemesis, schedule
from tests.chaos.report import Json, report_of

QUIET_S = 150.0
"""Longest time for all jobs to end after the last fault; usually a few seconds."""

TICK_S = 0.03
_SAY_EVERY_S = 15.0
_FIRST_MARKED = 1_000_000
Say = Callable[[str], None]


class Run:
    """A cluster with customers, created by ``running``. Fault injection must call ``turn`` or ``wait`` regularly."""

    def __init__(self, cluster: Cluster, seed: int, say: Say, hook_base: str) -> None:
        self.cluster = cluster
        self.seed = seed
        self.say = say
        self.hook_base = hook_base
        self.history = History()
        self.load: LoadThread | None = None
        self._began = self._told_at = time.monotonic()

    def let_in(self, rate: float, wanted: Iterator[Order] | None = None, *, retries_full: bool = True) -> LoadThread:
        """Start the load with ``rate`` orders per second."""
        load = Load(
            Journal(self.cluster.folder / "client.jsonl"),
            seed=self.seed,
            tenants=self.cluster.tenants,
            api_urls=self.cluster.api_urls,
            hook_base=self.hook_base,
            retries_full=retries_full,
        )
        self.load = LoadThread(load, wanted or orders(self.seed, len(self.cluster.tenants)), rate)
        return self.load

    def turn(self) -> None:
        """Keep the processes alive, and print progress at intervals."""
        self.cluster.tend()
        if self.load is not None and time.monotonic() - self._told_at > _SAY_EVERY_S:
            self._told_at = time.monotonic()
            self.say(f"{self.load.load.num_accepted} accepted, {self.load.load.num_open} customers waiting")
        time.sleep(TICK_S)

    def wait(self, seconds: float) -> None:
        """Turn for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.turn()

    def finish(self, quiet_s: float = QUIET_S) -> History:
        """Stop the load, wait until all jobs have ended, and read the history."""
        wait_for_the_end(self, quiet_s)
        self.history = read_history(self.cluster.folder, database_of(self.cluster))
        return self.history

    def report(self, findings: Findings, **more: object) -> Json:
        """Return the report line's fields."""
        duration_s = time.monotonic() - self._began
        return report_of(self.history, findings, seed=self.seed, duration_s=duration_s, **more)


@contextmanager
def running(name: str, *, seed: int, say: Say, shape: Shape, kind: type[Cluster] = Cluster) -> Iterator[Run]:
    """Yield a run with a serving cluster and a webhook receiver; logs stay in build/chaos/``name``."""
    began = time.monotonic()
    with running_cluster(shape, keep_logs=ROOT / "build" / "chaos" / name, kind=kind) as cluster:
        run = Run(cluster, seed, say, start_receiver(cluster))
        say(f"cluster ready after {time.monotonic() - began:.0f} s; Postgres on its own disk: {cluster.is_on_tmpfs}")
        yield run


def soak(
    *,
    seed: int,
    duration_s: float,
    rate: float,
    say: Say,
    faults: Sequence[str] = tuple(KINDS),
    shape: Shape | None = None,
    name: str = "chaos",
) -> tuple[Json, Findings]:
    """Run customers and nemesis for ``duration_s`` and return the report with the violations."""
    with running(name, seed=seed, say=say, shape=shape or Shape(), kind=CallingCluster) as run:
        load = run.let_in(rate, with_flows(orders(seed, len(run.cluster.tenants))))
        break_things(run, load, duration_s, faults)
        findings = check(run.finish(), needs_flows=True, needs_calls=True)
        return run.report(findings, run=name), findings


def start_receiver(cluster: Cluster) -> str:
    """Start the webhook receiver and return its address."""
    port = free_port("127.0.0.1", 0)
    secrets = json.dumps([tenant.webhook_secret for tenant in cluster.tenants])
    argv: list[str | Path] = [sys.executable, "-m", "tests.chaos.receiver", str(port)]
    argv += [cluster.folder / "hooks.jsonl", secrets]
    log = cluster.folder / "logs" / "receiver.log"
    cluster.helpers.append(Child(Command("receiver", argv, log, env=child_environment({}), cwd=ROOT)))
    return f"http://127.0.0.1:{port}"


def break_things(run: Run, load: LoadThread, duration_s: float, faults: Sequence[str]) -> None:
    """Run the schedule of the seed."""
    cluster = run.cluster
    numbers = count(_FIRST_MARKED)

    def inject(mark: str) -> Order:
        wanted = marked(mark, next(numbers), run.seed, tenant=0)
        load.inject(wanted)
        return wanted

    lease_s = float(cluster.shape.settings.get("LEASE_S", "10"))
    hands = Faults(cluster, run.seed, inject, lease_s=lease_s)
    nemesis = Nemesis(schedule(run.seed, duration_s, faults), hands.carry, cluster.journal)
    while not nemesis.is_done:
        nemesis.turn()
        run.turn()


def wait_for_the_end(run: Run, quiet_s: float) -> None:
    """Stop the faults and wait until customers and tables are done, or until a timeout."""
    began = time.monotonic()
    if run.load is not None:
        run.load.end(quiet_s)
    left = what_is_left(run.cluster)
    while time.monotonic() - began < quiet_s and (left or (run.load is not None and run.load.is_alive)):
        run.wait(1.0)
        forward_webhooks(run.cluster)
        left = what_is_left(run.cluster)
    run.say(f"quiet after {time.monotonic() - began:.0f} s" + (f"; left: {left}" if left else ""))
    while run.load is not None and run.load.is_alive:
        run.turn()


_LEFT = """
SELECT state, count(*) FROM jobs WHERE state IN ('queued', 'running') GROUP BY state
UNION ALL SELECT 'webhook', count(*) FROM webhook_deliveries WHERE state = 'pending' HAVING count(*) > 0
"""


def what_is_left(cluster: Cluster) -> dict[str, int]:
    """Count the jobs and webhooks that have not ended."""
    try:
        with psycopg.connect(**database_of(cluster), connect_timeout=5) as connection:
            return dict(connection.execute(_LEFT).fetchall())
    except psycopg.Error as error:
        return {str(error).strip(): 1}


# Far ahead means a planned retry: the third try is five minutes after the second, longer than a run.
_FORWARD = """
UPDATE webhook_deliveries SET next_attempt_at = now()
WHERE state = 'pending' AND next_attempt_at > now() + interval '100 s'
"""


def forward_webhooks(cluster: Cluster) -> None:
    """Bring planned retries forward."""
    with suppress(psycopg.Error), psycopg.connect(**database_of(cluster), connect_timeout=5) as connection:
        connection.execute(_FORWARD)


def database_of(cluster: Cluster) -> dict[str, Any]:
    """psycopg's parameters for Postgres without a proxy."""
    url = make_url(cluster.database_url)
    return {"host": str(url.query["host"]), "user": str(url.username), "dbname": str(url.database)}

"""One run: a cluster, customers, a nemesis, a quiet time in which everything must end, and the checker's word."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from cli.local.ports import free_port
from cli.local.process import Child, Command
from store.settings import child_environment
from tests.chaos.checker import Findings, check
from tests.chaos.cluster import ROOT, Cluster, Shape, running_cluster
from tests.chaos.faults import Faults
from tests.chaos.history import read_history
from tests.chaos.journal import Journal
from tests.chaos.load import Load, LoadThread, Order, marked, orders
from tests.chaos.nemesis import KINDS, Nemesis, schedule
from tests.chaos.report import Json, report_of

QUIET_S = 75.0
"""How long everything may take to end once nothing is broken any more; it usually takes a few seconds."""

TICK_S = 0.03
_FIRST_MARKED = 1_000_000
Say = Callable[[str], None]


def soak(
    *,
    seed: int,
    duration_s: float,
    rate: float,
    say: Say,
    faults: Sequence[str] = tuple(KINDS),
    shape: Shape | None = None,
    run: str = "chaos",
) -> tuple[Json, Findings]:
    """Run customers and nemesis for ``duration_s`` and return the report with what the checker found."""
    began = time.monotonic()
    logs = ROOT / "build" / "chaos" / run
    with running_cluster(shape or Shape(), keep_logs=logs) as cluster:
        say(f"cluster ready after {time.monotonic() - began:.0f} s; Postgres on its own disk: {cluster.is_on_tmpfs}")
        hook_base = start_receiver(cluster)
        load = start_load(cluster, seed, rate, hook_base)
        break_things(cluster, seed, duration_s, faults, load, say)
        wait_for_the_end(cluster, load, say)
        history = read_history(cluster.folder, database_of(cluster))
    findings = check(history)
    report = report_of(history, findings, seed=seed, duration_s=time.monotonic() - began, run=run)
    return report, findings


def start_receiver(cluster: Cluster) -> str:
    """Start the webhook receiver and return its address."""
    port = free_port("127.0.0.1", 0)
    secrets = json.dumps([tenant.webhook_secret for tenant in cluster.tenants])
    argv: list[str | Path] = [sys.executable, "-m", "tests.chaos.receiver", str(port)]
    argv += [cluster.folder / "hooks.jsonl", secrets]
    log = cluster.folder / "logs" / "receiver.log"
    cluster.helpers.append(Child(Command("receiver", argv, log, env=child_environment({}), cwd=ROOT)))
    return f"http://127.0.0.1:{port}"


def start_load(cluster: Cluster, seed: int, rate: float, hook_base: str) -> LoadThread:
    """Let customers in."""
    load = Load(
        Journal(cluster.folder / "client.jsonl"),
        seed=seed,
        tenants=cluster.tenants,
        api_urls=cluster.api_urls,
        hook_base=hook_base,
    )
    return LoadThread(load, orders(seed, len(cluster.tenants)), rate)


def break_things(
    cluster: Cluster, seed: int, duration_s: float, faults: Sequence[str], load: LoadThread, say: Say
) -> None:
    """Carry out the seed's schedule."""
    numbers = count(_FIRST_MARKED)

    def inject(mark: str) -> Order:
        wanted = marked(mark, next(numbers), seed, tenant=0)
        load.inject(wanted)
        return wanted

    lease_s = float(cluster.shape.settings.get("LEASE_S", "10"))
    hands = Faults(cluster, seed, inject, lease_s=lease_s)
    nemesis = Nemesis(schedule(seed, duration_s, faults), hands.carry, cluster.journal)
    told_at = time.monotonic()
    while not nemesis.is_done:
        cluster.tend()
        nemesis.turn()
        if time.monotonic() - told_at > 15:
            told_at = time.monotonic()
            say(
                f"{load.load.num_accepted} accepted, {load.load.num_open} customers waiting, "
                f"{nemesis.num_waiting} strikes to come"
            )
        time.sleep(TICK_S)


def wait_for_the_end(cluster: Cluster, load: LoadThread, say: Say, quiet_s: float = QUIET_S) -> None:
    """Break nothing any more, and wait until customers and tables agree that it is over, or the time is."""
    began = time.monotonic()
    load.end(quiet_s)
    left = what_is_left(cluster)
    while time.monotonic() - began < quiet_s and (load.is_alive or left):
        for _ in range(30):
            cluster.tend()
            time.sleep(TICK_S)
        forward_webhooks(cluster)
        left = what_is_left(cluster)
    say(f"quiet after {time.monotonic() - began:.0f} s" + (f"; left: {left}" if left else ""))
    while load.is_alive:
        cluster.tend()
        time.sleep(TICK_S)


_LEFT = """
SELECT state, count(*) FROM jobs WHERE state IN ('queued', 'running') GROUP BY state
UNION ALL SELECT 'webhook', count(*) FROM webhook_deliveries WHERE state = 'pending' HAVING count(*) > 0
"""


def what_is_left(cluster: Cluster) -> dict[str, int]:
    """Count the jobs and webhooks that have not ended."""
    try:
        with psycopg.connect(**database_of(cluster), connect_timeout=5) as connection:  # type: ignore[arg-type]
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
    with suppress(psycopg.Error), psycopg.connect(**database_of(cluster), connect_timeout=5) as connection:  # type: ignore[arg-type]
        connection.execute(_FORWARD)


def database_of(cluster: Cluster) -> dict[str, str]:
    """What psycopg needs to reach Postgres past every proxy."""
    url = make_url(cluster.database_url)
    return {"host": str(url.query["host"]), "user": str(url.username), "dbname": str(url.database)}

"""``make bench-backlog``: what a submit and a claim cost with a thousand jobs queued, and with a million.

One run on the embedded services: the real API and dispatcher, no worker. The queue is filled through the real table
with its triggers. At each size submits come over HTTP at a fixed rate; then a wave of jobs at a time is chosen in fair
order, claimed and (off the clock) given back, as a dispatcher and a worker would. The longer queue is measured twice:
just filled, when Postgres still plans for the shorter one, and with fresh statistics. Prints a table and, as its last
line, JSON; exits 1 if a goal is missed. It knows what a queued row looks like, and nothing of how order is kept.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.queue import headrace
from benchmarks.queue.headrace import Stack
from benchmarks.queue.load import Plan, run_load
from benchmarks.queue.services import Services, running_services
from headrace.store.db.database import Database
from headrace.store.jobs import claims
from headrace.store.jobs.claims import Release
from headrace.store.redis.connection import connect
from headrace.store.scheduling import dispatch_queries
from headrace.store.scheduling.dispatch_queries import RoundRobin

console = Console(stderr=True)
Say = Callable[[str], None]

QUEUE = "fake@1"
MOST_TIMES = 2.0
"""How much dearer the longer queue may be."""

REDIS_SLACK_BYTES = 1 << 20
_BATCH = 50_000
_TENANTS = 40
_CLAIMED = 32
_LEASE_S = 30.0

# Tenants of very different sizes, three classes, deadlines in no order: what fair order has to look through.
_FILL = """
WITH created AS (
    INSERT INTO jobs (id, tenant_id, task, model, model_version, queue, class_rank, priority, payload, input_tokens,
        cost_tokens, max_attempts, deadline_at)
    SELECT 'job_' || to_char(n, 'FM00000000000000000000000000000000'),
        'backlog_' || CASE WHEN n %% 2 = 0 THEN 0 ELSE n %% %(tenants)s END, 'generate', 'fake', 1, %(queue)s,
        n %% 3, 5, '{"input": {"prompt": "ping"}, "sampling": {"max_tokens": 1, "temperature": 0}}', 4, 5, 3,
        now() + make_interval(secs => 86400 + (n * 7919) %% 86400)
    FROM generate_series(CAST(%(first)s AS bigint), %(last)s) AS n
    RETURNING id
)
INSERT INTO job_events (job_id, kind, epoch) SELECT id, 'queued', 0 FROM created
"""

# As the API and the dispatcher count: the totals, and the changes that are not added to them yet.
_QUEUED = """
SELECT CAST(sum(jobs) AS int)
FROM (SELECT jobs FROM queue_totals UNION ALL SELECT jobs FROM queue_changes) AS counted
"""

_ROOM = {
    f"HEADRACE_MAX_QUEUED_{name}": str(2**40) for name in ("JOBS", "JOBS_PER_TENANT", "TOKENS", "TOKENS_PER_TENANT")
}


@dataclass(frozen=True)
class Size:
    """The figures at one size of the queue. Times in ms; a claim is a group of jobs, chosen and taken."""

    name: str
    queued: int
    submit_p50_ms: float
    submit_p99_ms: float
    claim_p50_ms: float
    claim_p99_ms: float
    redis_bytes: int


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    short: int = 1_000
    long: int = 1_000_000
    submits: int = 1_500
    rate: float = 75.0
    claims: int = 300


@contextmanager
def _connected(services: Services) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(services.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        yield connection


def fill(services: Services, first: int, last: int, say: Say) -> None:
    """Queue the jobs numbered ``first`` to ``last``."""
    with _connected(services) as connection:
        connection.execute(
            "INSERT INTO tenants (id, name, webhook_secret) SELECT 'backlog_' || n, 'backlog ' || n, '-'"
            f" FROM generate_series(0, {_TENANTS}) AS n ON CONFLICT DO NOTHING"
        )
        for start in range(first, last + 1, _BATCH):
            end = min(last, start + _BATCH - 1)
            connection.execute(_FILL, {"first": start, "last": end, "queue": QUEUE, "tenants": _TENANTS})
            say(f"{end:,} jobs queued")


def refresh_statistics(services: Services) -> None:
    """Do at once what autovacuum does in its own time."""
    with _connected(services) as connection:
        connection.execute("VACUUM ANALYZE")


def measure(name: str, stack: Stack, services: Services, options: Options) -> Size:
    """Measure submits, then claims."""
    with _connected(services) as connection:
        queued = connection.execute(_QUEUED).fetchall()[0][0]
    dialect = replace(stack.dialect, state_field=None, poll_path=None)
    plan = Plan(stack.port, dialect, options.submits, rate=options.rate)
    run_load(replace(plan, jobs=min(100, options.submits)))  # warm
    submits = run_load(plan)
    if submits.errors:
        raise SystemExit(f"submits failed: {submits.errors}")
    db = Database(services.database_url, pool_size=1, application_name="bench-backlog")
    try:
        times_s = sorted(_claim_times(db, options.claims))
    finally:
        db.close()
    with connect(services.redis_url) as client:
        redis_bytes = int(client.info("memory")["used_memory"])
    return Size(
        name, queued, submits.submit_p50_ms, submits.submit_p99_ms, _ms(times_s, 0.5), _ms(times_s, 0.99), redis_bytes
    )


def _claim_times(db: Database, num_waves: int) -> Iterator[float]:
    """Yield how long each wave took: choosing jobs in fair order, as a dispatcher, and claiming them, as a worker."""
    round_robin = RoundRobin()
    for _ in range(num_waves):
        began = time.perf_counter()
        chosen = dispatch_queries.take_waiting(db, QUEUE, _CLAIMED, round_robin)
        held = claims.claim(db, "bench-backlog", QUEUE, chosen, _LEASE_S)
        yield time.perf_counter() - began
        if len(held) != _CLAIMED:
            raise SystemExit(f"{len(held)} of {_CLAIMED} jobs were claimed: the queue is not what it should be")
        claims.release(db, [Release(one.job_id, one.epoch) for one in held.values()])


def _ms(times_s: list[float], share: float) -> float:
    return round(1000 * times_s[min(len(times_s) - 1, int(share * len(times_s)))], 2)


def missed(short: Size, long: Size) -> list[str]:
    """Return a line for each goal that the longer queue misses."""
    lines = []
    for name in ("submit_p99_ms", "claim_p99_ms"):
        before, after = getattr(short, name), getattr(long, name)
        if after > MOST_TIMES * before:
            lines.append(f"{long.name}: {name} {after} is {after / before:.1f} × that of {short.name}, more than 2 ×")
    if (grown := long.redis_bytes - short.redis_bytes) > REDIS_SLACK_BYTES:
        lines.append(f"{long.name}: Redis holds {grown:,} bytes more than with {short.name}")
    return lines


def run(services: Services, options: Options, say: Say) -> list[Size]:
    """Measure the short queue, then the long one twice, under one API and one dispatcher."""
    with headrace.running(services, say, _ROOM, with_worker=False) as stack:
        fill(services, 1, options.short, say)
        refresh_statistics(services)
        sizes = [measure(f"{options.short:,}", stack, services, options)]
        say(str(sizes[-1]))
        fill(services, options.short + 1, options.long, say)
        sizes.append(measure(f"{options.long:,}, just filled", stack, services, options))
        say(str(sizes[-1]))
        refresh_statistics(services)
        sizes.append(measure(f"{options.long:,}, fresh statistics", stack, services, options))
        return sizes


def _table(sizes: list[Size]) -> Table:
    table = Table(title=f"What a backlog costs (ms; a claim is a wave of {_CLAIMED} jobs)")
    for heading in ("queued", "submit p50", "submit p99", "claim p50", "claim p99", "Redis, MB"):
        table.add_column(heading, justify="right")
    for size in sizes:
        times = (size.submit_p50_ms, size.submit_p99_ms, size.claim_p50_ms, size.claim_p99_ms)
        table.add_row(size.name, *(f"{value:.1f}" for value in times), f"{size.redis_bytes / 1e6:.1f}")
    return table


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in asdict(Options()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = Options(**vars(parser.parse_args()))
    began = time.monotonic()
    with running_services() as services:
        sizes = run(services, options, console.log)
    broken = [line for size in sizes[1:] for line in missed(sizes[0], size)]
    console.print(_table(sizes))
    for line in broken:
        console.print(f"missed: {line}")
    found = {
        "benchmark": "backlog",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load_1m_after": round(os.getloadavg()[0], 2),
        "duration_s": round(time.monotonic() - began, 1),
        **asdict(options),
        "sizes": [asdict(size) for size in sizes],
        "missed": broken,
    }
    print(json.dumps(found))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

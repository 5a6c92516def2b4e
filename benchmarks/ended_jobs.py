"""``make bench-ended-jobs``: what accept, claim, end and the deletion of a day cost beside millions of ended jobs.

One embedded Postgres with two databases: an empty one, and one with ``--jobs`` ended jobs, spread evenly over
``--days`` days, with what they leave: events, ends, attempts, ledger, and for the newest week contents and streams. The
same functions of the store as in the API, the dispatcher and a worker are called on both, each call on the one right
after that on the other, so that the load of other processes meets both. The CPU time of the Postgres process is printed
beside the time of a call, because other processes change it little. Then the oldest day is deleted, with the functions
that the dispatcher calls. Prints the figures and, as its last line, JSON; exits 1 if a goal is missed.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from sqlalchemy import text

from headrace.cli.local.postgres import LocalPostgres
from headrace.migrations.schema import upgrade
from headrace.store.db.database import Database
from headrace.store.ids import first_id, new_id
from headrace.store.jobs import claims, days, sweeps
from headrace.store.jobs.claims import Finish
from headrace.store.jobs.jobs import NewJob, accept, list_jobs
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.scheduling import dispatch_queries
from headrace.store.scheduling.dispatch_queries import RoundRobin
from headrace.store.schema.job_states import JobState
from headrace.store.tenants import usage

console = Console(stderr=True)

MOST_TIMES = 1.1
LONGEST_DROP_MS = 100.0
_QUEUE = "fake@1"
_GROUP = 8
_TENANTS = 40
_BATCH = 100_000
_DAY_S = 86_400
_KEPT_DAYS = 7
_DELETE_S = 60.0
_USAGE = {"input_tokens": 40, "output_tokens": 128}

_PARTED = ("job_events", "job_terminal", "usage_ledger")

# The job number n of ``num``, oldest first. The ids are as those of ``store.ids``.
_CONTENT = "repeat(md5(n::text), 12)"
_FILL = f"""
WITH numbered AS MATERIALIZED (
    SELECT n, at, at > now() - make_interval(days => %(kept)s) AS is_kept,
        'job_' || lpad(to_hex(CAST(extract(epoch FROM at) * 1000 AS bigint)), 12, '0') || '7'
            || lpad(to_hex(n), 19, '0') AS id,
        'ten_' || n %% {_TENANTS} AS tenant_id
    FROM (
        SELECT n, %(until)s - make_interval(secs => %(span_s)s * (1 - n / CAST(%(num)s AS float8))) AS at
        FROM generate_series(CAST(%(first)s AS bigint), %(last)s) AS n
    ) AS numbered
), created AS (
    INSERT INTO jobs (id, tenant_id, task, state, model, model_version, queue, class_rank, priority, payload,
        input_tokens, cost_tokens, epoch, attempt, max_attempts, deadline_at, announced_at, created_at, started_at,
        completed_at, output, usage, input_purged_at, output_purged_at)
    SELECT id, tenant_id, 'generate', 'succeeded', 'fake', 1, '{_QUEUE}', n %% 3, 5,
        CASE WHEN is_kept THEN jsonb_build_object('input', {_CONTENT}) ELSE '{{}}'::jsonb END,
        40, 168, 1, 1, 3, at + interval '1 day', at, at, at, at + interval '5 s',
        CASE WHEN is_kept THEN jsonb_build_object('text', {_CONTENT}) END,
        '{{"input_tokens": 40, "output_tokens": 128}}', CASE WHEN NOT is_kept THEN at + interval '7 days' END,
        CASE WHEN NOT is_kept THEN at + interval '7 days' END
    FROM numbered ORDER BY n
), events AS (
    INSERT INTO job_events (job_id, kind, epoch, detail, at)
    SELECT id, kind, CASE WHEN kind = 'queued' THEN 0 ELSE 1 END,
        CASE WHEN kind = 'started' THEN '{{"attempt": 1, "worker": "worker-1.example"}}' ELSE '{{}}' END::jsonb, at
    FROM numbered CROSS JOIN unnest(ARRAY['queued', 'started', 'succeeded']) AS kind ORDER BY n
), attempted AS (
    INSERT INTO attempts (job_id, epoch, attempt, worker, started_at, ended_at, outcome)
    SELECT id, 1, 1, 'worker-1.example', at, at + interval '5 s', 'succeeded' FROM numbered ORDER BY n
), streams AS (
    INSERT INTO job_streams (job_id, epoch, deltas, num_deltas)
    SELECT id, 1, jsonb_build_array({_CONTENT}), 32 FROM numbered WHERE is_kept ORDER BY n
), ledger AS (
    INSERT INTO usage_ledger (job_id, tenant_id, task, model, model_version, class_rank, state, input_tokens,
        output_tokens, at)
    SELECT id, tenant_id, 'generate', 'fake', 1, n %% 3, 'succeeded', 40, 128, at FROM numbered ORDER BY n
)
INSERT INTO job_terminal (job_id, state, epoch, at) SELECT id, 'succeeded', 1, at FROM numbered ORDER BY n
"""

_BIGGEST = """
SELECT regexp_replace(relname, '_(\\d{8}|old|rest)$', ''), CAST(sum(pg_table_size(oid)) AS bigint),
    CAST(sum(pg_indexes_size(oid)) AS bigint)
FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
GROUP BY 1 ORDER BY sum(pg_total_relation_size(oid)) DESC LIMIT 7
"""


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    jobs: int = 5_000_000
    days: int = 30
    rounds: int = 150
    folder: str = ""


@dataclass
class Side:
    """A database, and the times of calls on it in ms: from outside, and on the CPU of its Postgres process."""

    db: Database
    pid: int
    round_robin: RoundRobin = field(default_factory=RoundRobin)
    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    held: list[Finish] = field(default_factory=list)

    def timed(self, name: str, call: Callable[[], Any]) -> Any:
        cpu, began = _cpu_ms(self.pid), time.perf_counter()
        found = call()
        self.wall.setdefault(name, []).append(1000 * (time.perf_counter() - began))
        self.cpu.setdefault(name, []).append(_cpu_ms(self.pid) - cpu)
        return found

    def accept(self, number: int) -> None:
        job = NewJob(
            id=new_id("job"),
            tenant_id=f"ten_{number % _TENANTS}",
            task="generate",
            model="fake",
            model_version=1,
            queue=_QUEUE,
            service_class=ServiceClass.STANDARD,
            priority=5,
            payload={"input": {"prompt": "ping"}},
            input_tokens=40,
            cost_tokens=168,
            metadata={},
            webhook=None,
            max_attempts=3,
            deadline_s=3600.0,
            idempotency=None,
            announce=False,
        )
        self.timed("accept", lambda: accept(self.db, [job]))

    def choose(self) -> None:
        take = dispatch_queries.take_waiting
        self.jobs = self.timed("choose", lambda: take(self.db, _QUEUE, _GROUP, self.round_robin))

    def claim(self) -> None:
        held = self.timed("claim", lambda: claims.claim(self.db, "bench", _QUEUE, self.jobs, 30.0))
        if len(held) != _GROUP:
            raise SystemExit(f"{len(held)} of {_GROUP} jobs were claimed")
        output = {"text": "x" * 200}
        self.held = [Finish(c.job_id, c.epoch, JobState.SUCCEEDED, output, None, _USAGE, ["x"]) for c in held.values()]

    def end(self) -> None:
        one = self.held.pop()
        self.timed("end", lambda: claims.finish(self.db, [one]))

    def list(self) -> None:
        self.timed("list", lambda: list_jobs(self.db, "ten_1"))


def _cpu_ms(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def prepare(url: str, options: Options) -> Database:
    """Make the schema, with a partition for the day of each job, and the tenants."""
    with closing(Database(url, pool_size=2, application_name="bench-ended-jobs")) as migrating:
        upgrade(migrating)
    db = Database(url, pool_size=1, application_name="bench-ended-jobs")
    since = _midnight() - datetime.timedelta(days=options.days)
    with db.begin() as connection:
        for table in _PARTED:
            bound = since.isoformat() if table == "usage_ledger" else first_id("job", since)
            connection.execute(text(f"ALTER TABLE {table} DETACH PARTITION {table}_old"))
            connection.execute(
                text(f"ALTER TABLE {table} ATTACH PARTITION {table}_old FOR VALUES FROM (MINVALUE) TO ('{bound}')")
            )
        connection.execute(
            text(
                "INSERT INTO tenants (id, name, webhook_secret) SELECT 'ten_' || n, 'tenant ' || n, '-'"
                f" FROM generate_series(0, {_TENANTS - 1}) AS n"
            )
        )
    days.make_ahead(db)
    return db


def _midnight() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def fill(url: str, options: Options) -> None:
    """Store ended jobs, as they would lie after ``days`` whole days. Triggers and foreign keys are not run for them."""
    began = time.monotonic()
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for setting in ("autovacuum = off", "fsync = off", "full_page_writes = off", "max_wal_size = '4GB'"):
            connection.execute(f"ALTER SYSTEM SET {setting}")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("SET session_replication_role = replica")
        of = {"num": options.jobs, "span_s": options.days * _DAY_S, "kept": _KEPT_DAYS, "until": _midnight()}
        for first in range(1, options.jobs + 1, _BATCH):
            last = min(options.jobs, first + _BATCH - 1)
            connection.execute(_FILL, {**of, "first": first, "last": last})
            if last % (5 * _BATCH) == 0:
                console.log(f"{last:,} ended jobs after {time.monotonic() - began:.0f} s")
        connection.execute("ALTER SYSTEM RESET ALL")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
    console.log(f"filled and vacuumed after {time.monotonic() - began:.0f} s")


def measure(sides: dict[str, Side], options: Options) -> None:
    """Run jobs on both sides in turn. The first calls, of cold caches and plans, are not kept."""
    for number in range(options.rounds + 20):
        if number == 20:
            for side in sides.values():
                side.wall.clear()
                side.cpu.clear()
        order = list(sides.values())[:: 1 if number % 2 else -1]
        steps = [*[partial(Side.accept, number=n) for n in range(_GROUP)], Side.choose, Side.claim]
        for step in [*steps, *[Side.end] * _GROUP, Side.list]:
            for side in order:
                step(side)


def delete_day(url: str, side: Side, options: Options) -> dict[str, float]:
    """Delete the oldest day, as the dispatcher does: the jobs' rows first, then its partitions."""
    db, pid = side.db, side.pid
    ttl_s = (datetime.datetime.now(datetime.UTC) - _midnight()).total_seconds() + (options.days - 1) * _DAY_S
    num, began = 0, time.perf_counter()
    while (deleted := sweeps.purge(db, ttl_s, _DAY_S, 500)) and time.perf_counter() - began < _DELETE_S:
        num += deleted
    found = {"jobs_deleted": num, "jobs_deleted_per_s": round(num / (time.perf_counter() - began))}
    if deleted:  # the rest of the day, faster than a dispatcher would
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            end = first_id("job", _midnight() - datetime.timedelta(days=options.days - 1))
            connection.execute("SET session_replication_role = replica")
            for table, key in (("attempts", "job_id"), ("jobs", "id")):
                connection.execute(f"DELETE FROM {table} WHERE {key} < '{end}'")
    for kind, drop in (("drop", days.drop_one), ("add_up_and_drop", usage.add_up_day)):
        while True:
            cpu, began = _cpu_ms(pid), time.perf_counter()
            name = drop(db, ttl_s)
            took_ms = 1000 * (time.perf_counter() - began)
            if name is None:
                break
            found[f"{kind}_{name}_ms"] = round(took_ms, 1)
            found[f"cpu_of_{kind}_{name}_ms"] = round(_cpu_ms(pid) - cpu, 1)
    return found


def _at(times: list[float], share: float) -> float:
    times = sorted(times)
    return round(times[min(len(times) - 1, int(share * len(times)))], 2)


def _figures(side: Side) -> dict[str, dict[str, float]]:
    return {
        name: {
            "calls": len(side.wall[name]),
            "p50_ms": _at(side.wall[name], 0.5),
            "p99_ms": _at(side.wall[name], 0.99),
            "cpu_mean_ms": round(statistics.mean(side.cpu[name]), 3),
            "cpu_p99_ms": _at(side.cpu[name], 0.99),
        }
        for name in side.wall
    }


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in asdict(Options()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = Options(**vars(parser.parse_args()))
    began = time.monotonic()
    with ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="hr-", dir=options.folder or None))
        folder.chmod(0o711)  # PostgreSQL does not run as root: its own user must enter the folder
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres = LocalPostgres(folder / "pg", folder / "postgres.log")
        cleanup.callback(postgres.stop)
        postgres.start()
        urls = {"full": postgres.url, "empty": postgres.url.replace("/postgres?", "/empty?")}
        with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("CREATE DATABASE empty")
        sides = {}
        for name, url in urls.items():
            db = prepare(url, options)
            cleanup.callback(db.close)
            if name == "full":
                fill(url, options)
            with db.begin() as connected:
                sides[name] = Side(db, int(connected.execute(text("SELECT pg_backend_pid()")).scalar_one()))
        with psycopg.connect(urls["full"].replace("+psycopg", ""), autocommit=True) as connection:
            sizes = {n: [round(t / 1e6), round(i / 1e6)] for n, t, i in connection.execute(_BIGGEST).fetchall()}
        load = os.getloadavg()[0]
        measure(sides, options)
        full, empty = _figures(sides["full"]), _figures(sides["empty"])
        deleted = delete_day(urls["full"], sides["full"], options)
    missed = [
        f"{step}: {name} {full[step][name]} is more than {MOST_TIMES} × {empty[step][name]}"
        for step in ("accept", "claim")
        for name in ("p99_ms", "cpu_p99_ms")
        if full[step][name] > MOST_TIMES * empty[step][name]
    ]
    missed += [
        f"{name}: {took}" for name, took in deleted.items() if name.startswith("drop_") and took > LONGEST_DROP_MS
    ]
    for step in full:
        console.print(step, "empty", empty[step], "full", full[step])
    for line in missed:
        console.print(f"missed: {line}")
    found = {
        "benchmark": "ended_jobs",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load_1m": [round(load, 2), round(os.getloadavg()[0], 2)],
        "duration_s": round(time.monotonic() - began, 1),
        **asdict(options),
        "megabytes": sizes,
        "empty": empty,
        "full": full,
        "deleted": deleted,
        "missed": missed,
    }
    print(json.dumps(found))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

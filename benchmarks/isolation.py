"""``python -m benchmarks.isolation``: what row-level security costs: the store as the API's role and as the owner.

One run on an embedded Postgres, in turns: a wave of one job and of 64 jobs of 64 tenants accepted, a job read, a list
of 20, a key looked up. Prints medians and their ratio and, as its last line, JSON.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from headrace.cli.local.postgres import LocalPostgres
from headrace.migrations.roles import let_in
from headrace.migrations.schema import upgrade
from headrace.store.db.database import Database
from headrace.store.db.roles import API, url_of
from headrace.store.ids import new_id
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import NewJob
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.tenants import api_keys

ROUNDS = 300
TENANTS = 64


def main() -> int:
    """Measure and print; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="hr-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL does not run as root: its own user must enter the folder
        postgres = LocalPostgres(folder / "pg", folder / "postgres.log")
        postgres.start()
        owner = Database(postgres.url, pool_size=2, application_name="bench-isolation")
        bound = Database(url_of(postgres.url, API), pool_size=1, application_name="bench-isolation")
        try:
            upgrade(owner)
            let_in(owner, {})
            figures = _measure(owner, bound)
        finally:
            owner.close()
            bound.close()
            postgres.stop()
    for what, (without, with_) in figures.items():
        sys.stdout.write(f"{what:<24} {without:8.3f} ms {with_:8.3f} ms   x {with_ / without:.2f}\n")
    sys.stdout.write(json.dumps({what: round(with_ / without, 3) for what, (without, with_) in figures.items()}) + "\n")
    return 0


def _measure(owner: Database, bound: Database) -> dict[str, tuple[float, float]]:
    tenants = [api_keys.create_tenant(owner, f"tenant {n}") for n in range(TENANTS)]
    key = api_keys.create_key(owner, tenants[0], "k", ["admin"], actor="benchmark")
    first = _job(tenants[0])
    jobs.accept(owner, [first, *(_job(tenants[0]) for _ in range(100))])
    works: dict[str, Callable[[Database], object]] = {
        "accept a wave of 1": lambda db: jobs.accept(db, [_job(tenants[0])]),
        "accept a wave of 64": lambda db: jobs.accept(db, [_job(tenant) for tenant in tenants]),
        "read a job": lambda db: jobs.get(db, tenants[0], first.id),
        "list 20 jobs": lambda db: jobs.list_jobs(db, tenants[0]),
        "look up a key": lambda db: api_keys.authenticate(db, key),
    }
    return {what: _compare(work, owner, bound) for what, work in works.items()}


def _compare(work: Callable[[Database], object], owner: Database, bound: Database) -> tuple[float, float]:
    """Return the medians in milliseconds; in turns, so that both meet the machine as it is."""
    took_ms: dict[Database, list[float]] = {owner: [], bound: []}
    for turn in range(ROUNDS):
        for db in (owner, bound) if turn % 2 else (bound, owner):
            began = time.perf_counter()
            work(db)
            took_ms[db].append((time.perf_counter() - began) * 1000)
    return statistics.median(took_ms[owner]), statistics.median(took_ms[bound])


def _job(tenant_id: str) -> NewJob:
    return NewJob(
        id=new_id("job"),
        tenant_id=tenant_id,
        task="generate",
        model="tiny",
        model_version=1,
        queue="tiny@1",
        service_class=ServiceClass.STANDARD,
        priority=5,
        payload={"input": {"prompt": "hello"}, "sampling": {"max_tokens": 4}},
        input_tokens=5,
        cost_tokens=9,
        metadata={},
        webhook=None,
        max_attempts=3,
        deadline_s=3600.0,
        idempotency=None,
        announce=True,
    )


if __name__ == "__main__":
    sys.exit(main())

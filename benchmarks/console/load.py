"""What fills the console: stored jobs, tenants, and jobs that arrive."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psycopg

from headrace.cli.local.home import Home
from headrace.store.db.database import Database
from headrace.store.tenants.api_keys import create_key, create_tenant

MODEL = "fake"
_QUESTIONS = ("Tell me of the mill", "Name three rivers near", "Describe the bridge at", "Who lives beside the gate of")

# Ended jobs of the last days, with ids that are in the order of time.
_STORE = """
WITH numbered AS (
    SELECT n, now() - make_interval(secs => n * 2.5) AS at FROM generate_series(1, %(count)s) AS n
)
INSERT INTO jobs (id, tenant_id, task, model, model_version, queue, class_rank, priority, payload, input_tokens,
    cost_tokens, max_attempts, state, attempt, epoch, created_at, started_at, completed_at, output, usage, metadata)
SELECT
    'job_' || lpad(to_hex(CAST(extract(epoch FROM at) * 1000 AS bigint)), 12, '0') || '7' || lpad(to_hex(n), 19, '0'),
    %(tenant)s, 'generate', 'fake', 1, 'fake@1', n %% 3, 5,
    '{"input": {"prompt": "ping"}, "sampling": {"max_tokens": 8}}', 4, 12, 3,
    CASE WHEN n %% 40 = 0 THEN 'failed' ELSE 'succeeded' END, 1, 1, at, at, at + interval '2 seconds',
    '{"text": "pong", "finish_reason": "stop"}',
    '{"input_tokens": 4, "output_tokens": 8, "queue_ms": 12, "first_token_ms": 90, "compute_ms": 1900}',
    jsonb_build_object('order', CAST(n %% 1000 AS text))
FROM numbered
"""


def database_url(home: Path) -> str:
    """Return the address of the stack's database."""
    record = Home(home).record()
    if record is None:
        raise SystemExit("the stack left no record of its services")
    return record.database_url


def store_jobs(url: str, tenant_name: str, count: int) -> None:
    """Store ``count`` ended jobs of a tenant."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        (tenant,) = connection.execute("SELECT id FROM tenants WHERE name = %s", (tenant_name,)).fetchone() or ("",)
        connection.execute(_STORE, {"count": count, "tenant": tenant})
        connection.execute("ANALYZE jobs")


def make_tenants(url: str, names: Sequence[str]) -> list[str]:
    """Return a key for each of these new tenants."""
    db = Database(url, pool_size=1, application_name="bench-console")
    try:
        scopes = ["jobs:read", "jobs:write"]
        return [create_key(db, create_tenant(db, name), name, scopes, actor="bench") for name in names]
    finally:
        db.close()


def body(rng: random.Random, max_tokens: int) -> dict[str, Any]:
    """Return a job of a random class and prompt."""
    return {
        "model": MODEL,
        "input": {"messages": [{"role": "user", "content": f"{rng.choice(_QUESTIONS)} {rng.randrange(10_000)}."}]},
        "sampling": {"max_tokens": max_tokens, "ignore_eos": True},
        "service_class": rng.choice(["interactive", "standard", "standard", "batch"]),
        "metadata": {"order": str(rng.randrange(1000))},
    }


@contextmanager
def arrivals(api_url: str, keys: Sequence[str], per_s: float, lengths: Sequence[int]) -> Iterator[None]:
    """Submit jobs at random times for the block, from one tenant after the other."""
    stopping = threading.Event()

    def submit() -> None:
        rng = random.Random(7)
        with httpx2.Client(base_url=api_url, timeout=60, trust_env=False) as client:
            while not stopping.wait(rng.expovariate(per_s)):
                key = rng.choice(keys)
                client.post("/v1/jobs", json=body(rng, rng.choice(lengths)), headers=_bearer(key))

    thread = threading.Thread(target=submit, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def run_many(api_url: str, keys: Sequence[str], count: int, max_tokens: int) -> None:
    """Submit ``count`` long jobs, and wait until all of them run."""
    rng = random.Random(1)
    with httpx2.Client(base_url=api_url, timeout=60, trust_env=False) as client:
        for number in range(count):
            headers = _bearer(keys[number % len(keys)])
            client.post("/v1/jobs", json=body(rng, max_tokens), headers=headers).raise_for_status()
        while _running(client, keys[0]) < count:
            time.sleep(1)


def _running(client: httpx2.Client, key: str) -> int:
    queues = client.get("/v1/queues", headers=_bearer(key)).json()["data"]
    return int(sum(queue["running"] for queue in queues))


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}

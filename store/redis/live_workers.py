"""What each worker does at the moment, as it tells Redis: for people who watch, as in the console.

Nothing decides by it, and Redis may lose it. A worker replaces its snapshot every second; the last snapshot of a worker
that was lost stays for ``KEEP_S``, so that people see which one it was. Every ``TICK_S`` it adds a tick to a history,
which is kept for ``HISTORY_S``. There is no text of a job here.
"""

from datetime import UTC, datetime
from typing import Any

import redis
from pydantic import BaseModel

from headrace.store.redis.connection import translated_errors

PERIOD_S = 1.0
"""The time between two snapshots of a worker."""

KEEP_S = 60
TICK_S = 5.0
HISTORY_S = 600

_WORKERS = "headrace:live:workers"
_SNAPSHOT = "headrace:live:worker:"
_HISTORY = "headrace:live:history"
_MOST_TICKS = 100_000


class SnapshotJob(BaseModel):
    """One attempt that a worker holds. ``max_tokens`` is 0 for tasks without text. ``progress``: from 0 to 1."""

    id: str
    tenant_id: str
    class_rank: int
    attempt: int
    age_s: float
    input_tokens: int
    output_tokens: int
    max_tokens: int
    progress: float | None = None


class WorkerSnapshot(BaseModel):
    """A worker snapshot: what a worker holds at one moment.

    ``id`` is the owner of its claims; ``lease_age_s``: since the oldest renewal. ``quiet_s``: how long its requests
    have run without a new token; None if none of them generates text. ``kept_s``: how long Redis keeps it.
    ``is_reserved``: it takes no other jobs, because one whose worker died runs alone.
    """

    id: str
    queue: str
    engine: str | None
    slots: int
    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    lease_s: float
    lease_age_s: float | None
    jobs: list[SnapshotJob]
    # A worker of an older release sends none of them.
    quiet_s: float | None = None
    kept_s: int = 15
    is_reserved: bool = False


class WorkerTick(BaseModel):
    """What a worker did in the last ``TICK_S``.

    ``tokens``: generated, by tenant. ``first_token_ms``: from acceptance to the first token, by tenant. ``running``:
    the mean number of requests in the batch.
    """

    worker: str
    queue: str
    tokens: dict[str, int]
    first_token_ms: dict[str, list[float]]
    running: float
    slots: int


class SnapshotPublisher:
    """The side of a worker. Its methods raise Unavailable."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def publish(self, snapshot: WorkerSnapshot, tick: WorkerTick | None) -> None:
        """Replace the worker's snapshot, and add a tick to the history."""
        with translated_errors(self._client), self._client.pipeline(transaction=False) as pipe:
            pipe.set(_SNAPSHOT + snapshot.id, snapshot.model_dump_json(), ex=snapshot.kept_s)
            pipe.sadd(_WORKERS, snapshot.id)
            if tick is not None:
                oldest_ms = int((datetime.now(UTC).timestamp() - 2 * HISTORY_S) * 1000)
                pipe.xadd(_HISTORY, {"tick": tick.model_dump_json()}, minid=oldest_ms, approximate=True)
                pipe.xtrim(_HISTORY, maxlen=_MOST_TICKS, approximate=True)
                pipe.expire(_HISTORY, 2 * HISTORY_S)
            pipe.execute()

    def withdraw(self, worker_id: str) -> None:
        """Remove the snapshot of a worker that stops."""
        with translated_errors(self._client):
            self._client.delete(_SNAPSHOT + worker_id)
            self._client.srem(_WORKERS, worker_id)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def read_workers(client: redis.Redis) -> list[tuple[WorkerSnapshot, float]]:
    """Return the workers by queue and id, each with the age of its snapshot in seconds, by the clock of Redis.

    Raises what redis-py raises.
    """
    reply: Any = client.smembers(_WORKERS)
    ids = sorted(one.decode() for one in reply)
    with client.pipeline(transaction=False) as pipe:
        for one in ids:
            pipe.get(_SNAPSHOT + one)
            pipe.pttl(_SNAPSHOT + one)
        replies = pipe.execute()
    found = []
    for one, stored, left_ms in zip(ids, replies[::2], replies[1::2], strict=True):
        if stored is None:
            client.srem(_WORKERS, one)
            continue
        snapshot = WorkerSnapshot.model_validate_json(stored)
        found.append((snapshot, max(0.0, snapshot.kept_s - left_ms / 1000)))
    return sorted(found, key=lambda pair: (pair[0].queue, pair[0].id))


def read_ticks(client: redis.Redis, after: str) -> tuple[list[tuple[float, WorkerTick]], str]:
    """Return the ticks after the id ``after`` (``0-0``: all) with their Unix times, and the id of the last one.

    The times are those of Redis. Raises what redis-py raises.
    """
    entries: Any = client.xrange(_HISTORY, min=f"({after}")
    found = [(int(at.split(b"-")[0]) / 1000, WorkerTick.model_validate_json(e[b"tick"])) for at, e in entries]
    return found, entries[-1][0].decode() if entries else after

"""Heartbeats of API processes and workers in Postgres.

While Redis is away, the API processes divide the rate limits by their number. A worker's row has its queue, the
longest request that it can hold, so that a submission finds out whether a worker can run it, and its slots.
"""

from dataclasses import dataclass

from sqlalchemy import text

from headrace.store.db.database import Database

GONE_AFTER_S = 10.0
"""A process without a heartbeat for so long counts as dead."""

BEAT_S = 2.0


# Write the heartbeat of an API process.
_BEAT = text("""
INSERT INTO api_processes (id) VALUES (:id) ON CONFLICT (id) DO UPDATE SET seen_at = now()
""")

# Delete the rows of dead API processes.
_FORGET = text("DELETE FROM api_processes WHERE seen_at < now() - make_interval(secs => 6 * :gone_after_s)")

# Count the live API processes.
_COUNT = text("SELECT count(*) FROM api_processes WHERE seen_at > now() - make_interval(secs => :gone_after_s)")

# Write the heartbeat of a worker.
_WORKER_BEAT = text("""
INSERT INTO worker_processes (id, queue, capacity_tokens, slots) VALUES (:id, :queue, :capacity, :slots)
ON CONFLICT (id) DO UPDATE SET seen_at = now(), capacity_tokens = excluded.capacity_tokens, slots = excluded.slots
""")

# Delete the rows of dead workers.
_WORKER_FORGET = text("DELETE FROM worker_processes WHERE seen_at < now() - make_interval(secs => 6 * :gone_after_s)")

# Count the live workers of each queue.
_SERVING = text("""
SELECT queue, count(*) AS workers,
    CASE WHEN bool_and(capacity_tokens IS NOT NULL) THEN max(capacity_tokens) END AS capacity
FROM worker_processes WHERE seen_at > now() - make_interval(secs => :gone_after_s) GROUP BY queue
""")


def beat(db: Database, process_id: str) -> int:
    """Write this API process's heartbeat; return the number of live API processes, including it."""
    with db.autocommit() as connection:
        connection.execute(_BEAT, {"id": process_id})
        connection.execute(_FORGET, {"gone_after_s": GONE_AFTER_S})
        return int(connection.execute(_COUNT, {"gone_after_s": GONE_AFTER_S}).scalar_one())


def leave(db: Database, process_id: str) -> None:
    """Delete this API process's row: it ends."""
    with db.autocommit() as connection:
        connection.execute(text("DELETE FROM api_processes WHERE id = :id"), {"id": process_id})


@dataclass(frozen=True, slots=True)
class Serving:
    """The live workers of one queue. ``capacity``: the most tokens (prompt and ``max_tokens``) of a request that one of
    them can hold; None if that is the version's context window."""

    workers: int = 0
    capacity: int | None = None


def beat_worker(db: Database, worker_id: str, queue: str, capacity: int | None, *, slots: int | None = None) -> None:
    """Write this worker's heartbeat: it serves the queue. ``capacity`` as in ``Serving``, ``slots``: jobs at a time."""
    with db.autocommit() as connection:
        connection.execute(_WORKER_BEAT, {"id": worker_id, "queue": queue, "capacity": capacity, "slots": slots})
        connection.execute(_WORKER_FORGET, {"gone_after_s": GONE_AFTER_S})


def leave_worker(db: Database, worker_id: str) -> None:
    """Delete this worker's row: it takes no more jobs."""
    with db.autocommit() as connection:
        connection.execute(text("DELETE FROM worker_processes WHERE id = :id"), {"id": worker_id})


def read_serving(db: Database) -> dict[str, Serving]:
    """Return the live workers by queue; a queue without workers is absent."""
    with db.autocommit() as connection:
        rows = connection.execute(_SERVING, {"gone_after_s": GONE_AFTER_S}).all()
    return {row.queue: Serving(row.workers, row.capacity) for row in rows}

"""Which API processes and which workers live, by Postgres: each says now and then that it does.

The API processes divide among them, while Redis is away, what they otherwise share through it. A worker says which
queue it serves and how long a request it can hold, so that a submission knows who will run it.
"""

from dataclasses import dataclass

from sqlalchemy import text

from store.db.database import Database

GONE_AFTER_S = 10.0
"""A process that has not been seen for so long does not count any more."""

BEAT_S = 2.0

_BEAT = text("""
INSERT INTO api_processes (id) VALUES (:id) ON CONFLICT (id) DO UPDATE SET seen_at = now()
""")

_FORGET = text("DELETE FROM api_processes WHERE seen_at < now() - make_interval(secs => 6 * :gone_after_s)")

_COUNT = text("SELECT count(*) FROM api_processes WHERE seen_at > now() - make_interval(secs => :gone_after_s)")


def beat(db: Database, process_id: str) -> int:
    """Say that this API process lives; return how many do, with it."""
    with db.autocommit() as connection:
        connection.execute(_BEAT, {"id": process_id})
        connection.execute(_FORGET, {"gone_after_s": GONE_AFTER_S})
        return int(connection.execute(_COUNT, {"gone_after_s": GONE_AFTER_S}).scalar_one())


def leave(db: Database, process_id: str) -> None:
    """Say that this API process ends."""
    with db.autocommit() as connection:
        connection.execute(text("DELETE FROM api_processes WHERE id = :id"), {"id": process_id})


@dataclass(frozen=True, slots=True)
class Serving:
    """The workers of one queue. ``capacity``: tokens, prompt and ``max_tokens`` together, of the longest request that
    one of them can hold; None if that is as much as the version's context window."""

    workers: int = 0
    capacity: int | None = None


_WORKER_BEAT = text("""
INSERT INTO worker_processes (id, queue, capacity_tokens) VALUES (:id, :queue, :capacity)
ON CONFLICT (id) DO UPDATE SET seen_at = now()
""")

_WORKER_FORGET = text("DELETE FROM worker_processes WHERE seen_at < now() - make_interval(secs => 6 * :gone_after_s)")

_SERVING = text("""
SELECT queue, count(*) AS workers,
    CASE WHEN bool_and(capacity_tokens IS NOT NULL) THEN max(capacity_tokens) END AS capacity
FROM worker_processes WHERE seen_at > now() - make_interval(secs => :gone_after_s) GROUP BY queue
""")


def beat_worker(db: Database, worker_id: str, queue: str, capacity: int | None) -> None:
    """Say that this worker takes jobs of the queue; ``capacity`` as in ``Serving``."""
    with db.autocommit() as connection:
        connection.execute(_WORKER_BEAT, {"id": worker_id, "queue": queue, "capacity": capacity})
        connection.execute(_WORKER_FORGET, {"gone_after_s": GONE_AFTER_S})


def leave_worker(db: Database, worker_id: str) -> None:
    """Say that this worker takes no more jobs."""
    with db.autocommit() as connection:
        connection.execute(text("DELETE FROM worker_processes WHERE id = :id"), {"id": worker_id})


def read_serving(db: Database) -> dict[str, Serving]:
    """Return the workers that live, by queue; a queue without one is absent."""
    with db.autocommit() as connection:
        rows = connection.execute(_SERVING, {"gone_after_s": GONE_AFTER_S}).all()
    return {row.queue: Serving(row.workers, row.capacity) for row in rows}

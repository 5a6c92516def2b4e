"""Which jobs are next: the queues that have any, those to announce, and those a worker may claim directly.

Safe for two dispatchers at once: rows that another one holds are skipped, and every UPDATE names the state it leaves.
All ages are the database's.
"""

from dataclasses import dataclass

from sqlalchemy import text

from store.db import Database

# Counting further than this tells a dispatcher nothing and reads every row on the way.
MAX_COUNTED = 100_000


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """A queue with queued jobs: how many wait in Postgres and how many are announced, both counted to a limit."""

    queue: str
    waiting: int
    announced: int
    oldest_announced_s: float | None


_TAKE_WAITING = text("""
WITH next AS (
    SELECT id FROM jobs WHERE queue = :queue AND state = 'queued' AND announced_at IS NULL AND NOT is_suspect
    ORDER BY class_rank, priority, id LIMIT :n FOR NO KEY UPDATE SKIP LOCKED
), taken AS (
    UPDATE jobs SET announced_at = now()
    FROM next WHERE jobs.id = next.id AND jobs.state = 'queued'
    RETURNING jobs.id, class_rank, priority
)
SELECT id FROM taken ORDER BY class_rank, priority, id
""")


def take_waiting(db: Database, queue: str, n: int) -> list[str]:
    """Mark the next ``n`` waiting jobs as announced and return their ids, in the order to announce them."""
    with db.autocommit() as connection:
        return list(connection.execute(_TAKE_WAITING, {"queue": queue, "n": n}).scalars())


_TAKE_STALE = text("""
WITH stale AS (
    SELECT id, announced_at FROM jobs
    WHERE queue = :queue AND state = 'queued' AND announced_at < now() - make_interval(secs => :older_than_s)
    ORDER BY announced_at LIMIT :n FOR NO KEY UPDATE SKIP LOCKED
), taken AS (
    UPDATE jobs SET announced_at = now()
    FROM stale WHERE jobs.id = stale.id AND jobs.state = 'queued'
    RETURNING jobs.id, stale.announced_at
)
SELECT id FROM taken ORDER BY announced_at, id
""")


def take_stale(db: Database, queue: str, older_than_s: float, n: int) -> list[str]:
    """Return jobs that were announced long ago and nobody claimed, oldest first, to be announced again."""
    values = {"queue": queue, "older_than_s": float(older_than_s), "n": n}
    with db.autocommit() as connection:
        return list(connection.execute(_TAKE_STALE, values).scalars())


# The names are found by skipping through the index, so that a long queue costs no more than a short one.
_DEPTHS = text("""
WITH RECURSIVE names AS (
    (SELECT queue FROM jobs WHERE state = 'queued' ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT queue FROM jobs WHERE state = 'queued' AND queue > names.queue ORDER BY queue LIMIT 1)
    FROM names WHERE names.queue IS NOT NULL
)
SELECT
    queue,
    (SELECT count(*) FROM (
        SELECT FROM jobs
        WHERE jobs.queue = names.queue AND state = 'queued' AND announced_at IS NULL AND NOT is_suspect
        LIMIT :most) AS counted) AS waiting,
    (SELECT count(*) FROM (
        SELECT FROM jobs
        WHERE jobs.queue = names.queue AND state = 'queued' AND announced_at IS NOT NULL
        LIMIT :most) AS counted) AS announced,
    (SELECT CAST(extract(epoch FROM now() - min(announced_at)) AS float8) FROM jobs
        WHERE jobs.queue = names.queue AND state = 'queued' AND announced_at IS NOT NULL) AS oldest_announced_s
FROM names WHERE queue IS NOT NULL
""")


def waiting_queues(db: Database, most: int = MAX_COUNTED) -> list[QueueDepth]:
    """Return every queue that has queued jobs, counting to ``most``."""
    with db.autocommit() as connection:
        rows = connection.execute(_DEPTHS, {"most": most}).mappings().all()
    return [QueueDepth(**row) for row in rows]


_FORGET = text("UPDATE jobs SET announced_at = NULL WHERE state = 'queued' AND announced_at IS NOT NULL")


def forget_announcements(db: Database) -> int:
    """Let every queued job wait for its announcement again, because the broker lost them; return how many."""
    with db.autocommit() as connection:
        return connection.execute(_FORGET).rowcount


@dataclass(frozen=True, slots=True)
class Claimable:
    """Whether a queue has jobs to claim without a hint: suspects, which must run alone, and others."""

    suspects: bool
    others: bool


_OPEN = """queue = :queue AND state = 'queued'
    AND NOT EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = :queue)"""

_CLAIMABLE = text(f"""
SELECT
    EXISTS (SELECT FROM jobs WHERE {_OPEN} AND is_suspect) AS suspects,
    EXISTS (SELECT FROM jobs WHERE {_OPEN} AND NOT is_suspect) AS others
""")


def claimable(db: Database, queue: str) -> Claimable:
    """Say what ``claim_candidates`` would find, at the cost of an index entry or two: every idle worker asks."""
    with db.autocommit() as connection:
        row = connection.execute(_CLAIMABLE, {"queue": queue}).one()
    return Claimable(suspects=row.suspects, others=row.others)


# With Redis silent nobody knows which hints are lost, so what was announced long ago may be claimed as well.
_CANDIDATES = text("""
SELECT id FROM jobs
WHERE queue = :queue AND state = 'queued' AND is_suspect = :suspects
    AND COALESCE(announced_at, created_at) <= now() - make_interval(secs => :older_than_s)
    AND NOT EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = :queue)
ORDER BY announced_at NULLS LAST, class_rank, priority, deadline_at, id LIMIT :n
""")


def claim_candidates(
    db: Database, queue: str, n: int, *, suspects: bool = False, older_than_s: float = 0.0
) -> list[str]:
    """Return at most ``n`` queued jobs that a worker may claim without a hint, in the order to claim them.

    Either suspects or the others; only what was announced, or else accepted, at least ``older_than_s`` ago. Nothing
    is taken: whoever claims a job first has it.
    """
    values = {"queue": queue, "n": n, "suspects": suspects, "older_than_s": float(older_than_s)}
    with db.autocommit() as connection:
        return list(connection.execute(_CANDIDATES, values).scalars())

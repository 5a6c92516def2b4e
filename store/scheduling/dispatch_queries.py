"""Which jobs are next: the queues that have any, those to announce, and those a worker may claim directly.

Safe for two dispatchers at once: rows that another one holds are skipped, and every UPDATE names the state it leaves.
All ages are the database's.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from store.db.database import Database
from store.db.row_security import after
from store.payloads.job_payload import CLASS_RANKS, ServiceClass
from store.scheduling.deficit_round_robin import AGED_EVERY, Candidate, Turns, choose

# Counting further than this tells a dispatcher nothing and reads every row on the way.
MAX_COUNTED = 100_000

BATCH_RANK = CLASS_RANKS[ServiceClass.BATCH]


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """A queue with queued jobs: how many wait in Postgres and how many are announced, all counted to a limit."""

    queue: str
    waiting: int
    announced: int
    oldest_announced_s: float | None
    is_paused: bool = False
    # Of the batch class: how many are announced or run, and how many workers run jobs of any class.
    batch_under_way: int = 0
    num_workers: int = 0


@dataclass(slots=True)
class Rota:
    """Whose turn it is in each queue. Whoever takes jobs keeps one; a new one begins with the first tenant."""

    ageing_s: float = 60.0
    turns: dict[str, Turns] = field(default_factory=dict)

    def choose(self, queue: str, candidates: Iterable[Candidate], n: int) -> list[str]:
        """Return the next ``n`` jobs and let their tenants' turns pass."""
        turns = self.turns.get(queue, Turns())
        chosen, self.turns[queue] = choose(candidates, n, turns, ageing_s=self.ageing_s)
        return [job.id for job in chosen]


BY_INDEX = """
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
    set_config('enable_sort', 'off', true)
"""
"""Lets the rest of the transaction read rows in the order of an index, one by one.

While the statistics are still those of a table that was small a moment ago, reading and sorting it looks cheap. And
where jobs come and go between two vacuums, an index is full of entries of rows that are gone. A scan that goes from
entry to entry marks them, so that the next one passes over them; one that collects them first (a bitmap scan) does not,
and reads them again each time.
"""
_BY_INDEX = text(BY_INDEX)

_IS_WAITING = "jobs.queue = :queue AND state = 'queued' AND announced_at IS NULL AND NOT is_suspect"

_CANDIDATE = """
    jobs.id, jobs.tenant_id, jobs.class_rank, jobs.priority,
    GREATEST(jobs.cost_tokens, jobs.input_tokens) AS cost_tokens,
    CAST(extract(epoch FROM COALESCE(jobs.deadline_at, 'infinity')) AS float8) AS deadline,
    CAST(extract(epoch FROM now() - jobs.created_at) AS float8) AS waited_s
"""

# A line is what one tenant has in one class. They are found by skipping from tenant to tenant, beginning after the one
# that was served last and going round once. Each gives a few of its first jobs, more than it is likely to have places
# for, because a line with none left loses its credit. So what is read depends on ``n`` and not on how many wait. Those
# that waited longest come on top.
_CANDIDATES = text(f"""
WITH RECURSIVE lines AS (
    SELECT class_rank, last, last AS tenant_id, false AS is_second_time, 0 AS num
    FROM unnest(CAST(:ranks AS smallint[]), CAST(:last AS text[])) AS r(class_rank, last)
    UNION ALL
    SELECT lines.class_rank, last, found.tenant_id, found.is_second_time, num + 1
    FROM lines CROSS JOIN LATERAL (
        (SELECT jobs.tenant_id, lines.is_second_time FROM jobs
            WHERE {_IS_WAITING} AND jobs.class_rank = lines.class_rank AND jobs.tenant_id > lines.tenant_id
            ORDER BY jobs.tenant_id LIMIT 1)
        UNION ALL
        (SELECT jobs.tenant_id, true FROM jobs
            WHERE {_IS_WAITING} AND jobs.class_rank = lines.class_rank AND NOT lines.is_second_time
            ORDER BY jobs.tenant_id LIMIT 1)
        LIMIT 1
    ) AS found
    WHERE num < :most_lines AND NOT (found.is_second_time AND found.tenant_id > last)
), heads AS (
    SELECT job.* FROM (
        SELECT class_rank, tenant_id, count(*) OVER (PARTITION BY class_rank) AS num_lines FROM lines WHERE num > 0
    ) AS line CROSS JOIN LATERAL (
        SELECT {_CANDIDATE} FROM jobs
        WHERE {_IS_WAITING} AND jobs.class_rank = line.class_rank AND jobs.tenant_id = line.tenant_id
            AND created_at <= now() - make_interval(secs => :older_than_s)
        ORDER BY priority, deadline_at, id LIMIT 1 + LEAST(:n, GREATEST(2, 4 * :n / num_lines))
    ) AS job
), longest AS (
    SELECT {_CANDIDATE} FROM (
        SELECT * FROM jobs
        WHERE jobs.queue = :queue AND state = 'queued'
            AND created_at <= now() - make_interval(secs => GREATEST(:ageing_s, :older_than_s))
        ORDER BY created_at LIMIT :most_looked_at
    ) AS jobs
    WHERE {_IS_WAITING} ORDER BY created_at LIMIT :num_aged
)
SELECT * FROM (SELECT * FROM heads UNION SELECT * FROM longest) AS found
WHERE NOT EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = :queue)
""")
_MOST_LINES = 256
_MOST_LOOKED_AT = 4096


def _next_waiting(
    connection: Connection, queue: str, n: int, rota: Rota, older_than_s: float = 0.0, most_batch: int | None = None
) -> list[str]:
    last = rota.turns.get(queue, Turns()).last
    values = {
        "queue": queue,
        "n": n,
        "ranks": list(CLASS_RANKS.values()),
        "last": [last.get(rank, "") for rank in CLASS_RANKS.values()],
        "most_lines": min(_MOST_LINES, max(16, 2 * n)),
        "older_than_s": float(older_than_s),
        "ageing_s": rota.ageing_s,
        "num_aged": n // AGED_EVERY + 1,
        "most_looked_at": _MOST_LOOKED_AT,
    }
    connection.execute(_BY_INDEX)
    rows = connection.execute(_CANDIDATES, values).mappings()
    found = [Candidate(**row) for row in rows]
    if most_batch is not None:
        better = [job for job in found if job.class_rank < BATCH_RANK]
        # The better classes come first, so of so many no more than ``most_batch`` are of the batch class, but for an
        # old one that takes the place of a better.
        n = min(n, len(better) + most_batch)
        found = found if most_batch > 0 else better
    return rota.choose(queue, found, n)


# ``state || ''``: only the primary key shall be used, as in ``store.jobs.claims``. What is locked stays queued.
_TAKE_WAITING = text("""
WITH next AS (
    SELECT id FROM jobs
    WHERE id = ANY(CAST(:ids AS text[])) AND state || '' = 'queued' AND announced_at IS NULL AND NOT is_suspect
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE jobs SET announced_at = clock_timestamp() FROM next WHERE jobs.id = next.id
RETURNING jobs.id
""")


def take_waiting(
    db: Database, queue: str, n: int, rota: Rota | None = None, *, most_batch: int | None = None
) -> list[str]:
    """Mark the next ``n`` waiting jobs as announced and return their ids, in the order to announce them.

    ``most_batch`` bounds those of the batch class among them. Of a paused queue nothing is taken; what another
    dispatcher takes at this moment is left out.
    """
    with db.begin() as connection:
        chosen = _next_waiting(connection, queue, n, rota or Rota(), most_batch=most_batch)
        taken = set(connection.execute(_TAKE_WAITING, {"ids": chosen}).scalars()) if chosen else set()
    return [job_id for job_id in chosen if job_id in taken]


_TAKE_STALE = text("""
WITH stale AS (
    SELECT id, announced_at FROM jobs
    WHERE queue = :queue AND state = 'queued' AND announced_at < now() - make_interval(secs => :older_than_s)
    ORDER BY announced_at LIMIT :n FOR NO KEY UPDATE SKIP LOCKED
), taken AS (
    UPDATE jobs SET announced_at = now() FROM stale WHERE jobs.id = stale.id
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
        WHERE jobs.queue = names.queue AND state = 'queued' AND announced_at IS NOT NULL) AS oldest_announced_s,
    EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = names.queue) AS is_paused,
    (SELECT count(*) FROM (
        SELECT FROM jobs
        WHERE jobs.queue = names.queue AND state = 'queued' AND announced_at IS NOT NULL AND class_rank = :batch
        LIMIT :most) AS counted) + running.batch AS batch_under_way,
    running.num_workers
FROM names CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE class_rank = :batch) AS batch, count(DISTINCT owner) AS num_workers
    FROM jobs WHERE state = 'running' AND jobs.queue = names.queue
) AS running WHERE queue IS NOT NULL
""")


def waiting_queues(db: Database, most: int = MAX_COUNTED) -> list[QueueDepth]:
    """Return every queue that has queued jobs, counting to ``most``."""
    values = {"most": most, "batch": BATCH_RANK}
    with db.autocommit() as connection:
        rows = after(connection, BY_INDEX).execute(_DEPTHS, values).mappings().all()
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


_LOADS = text("""
SELECT owner, count(*) AS num_jobs, bool_or(is_suspect) AS is_alone FROM jobs
WHERE state = 'running' AND queue = :queue AND lease_expires_at > now() GROUP BY owner
""")

_BECOME_CLOSER = text("SELECT pg_try_advisory_xact_lock(hashtextextended('headrace: runs alone in ' || :queue, 0))")


class Closer:
    """The one worker of a queue that lets nobody in until a suspect can run alone in it. For one thread."""

    def __init__(self, connection: Connection, queue: str) -> None:
        self._connection = connection
        self._queue = queue

    def is_needed(self) -> bool:
        """Return whether a suspect waits. Raises Unavailable.

        To be asked every second or so: the transaction that makes this worker the closer ends when it stands still, so
        that a process that was stopped does not stay the closer.
        """
        return bool(self._connection.execute(_CLAIMABLE, {"queue": self._queue}).one().suspects)


@contextmanager
def closing(db: Database, queue: str, owner: str, *, heed_load: bool) -> Iterator[Closer | None]:
    """Make ``owner`` the closer for the block; it is told None while another worker is, or runs a suspect.

    ``heed_load``: also while another worker that renews its leases runs fewer jobs of the queue.
    """
    with db.begin() as connection:
        loads = {row.owner: row for row in connection.execute(_LOADS, {"queue": queue})}
        mine = loads.pop(owner, None)
        num_mine = 0 if mine is None else mine.num_jobs
        others = loads.values()
        has_turn = not any(other.is_alone or (heed_load and other.num_jobs < num_mine) for other in others)
        is_closer = has_turn and connection.execute(_BECOME_CLOSER, {"queue": queue}).scalar_one()
        yield Closer(connection, queue) if is_closer else None


# What was announced long ago may have been lost on its way; only whoever claims it can tell.
_UNCLAIMED = text("""
SELECT id FROM jobs
WHERE queue = :queue AND state = 'queued' AND announced_at <= now() - make_interval(secs => :older_than_s)
    AND NOT is_suspect AND NOT EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = :queue)
ORDER BY announced_at, id LIMIT :n
""")

_SUSPECTS = text("""
SELECT id FROM jobs
WHERE queue = :queue AND state = 'queued' AND is_suspect AND created_at <= now() - make_interval(secs => :older_than_s)
    AND NOT EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = :queue)
ORDER BY class_rank, priority, deadline_at, id LIMIT :n
""")


def claim_candidates(
    db: Database, queue: str, n: int, *, suspects: bool = False, older_than_s: float = 0.0, rota: Rota | None = None
) -> list[str]:
    """Return at most ``n`` queued jobs that a worker may claim without a hint, in the order to claim them.

    Either suspects or the others: what was announced at least ``older_than_s`` ago, then what was
    accepted that long ago and waits. Nothing is taken: whoever claims a job first has it.
    """
    values = {"queue": queue, "n": n, "older_than_s": float(older_than_s)}
    with db.begin() as connection:
        found = list(connection.execute(_SUSPECTS if suspects else _UNCLAIMED, values).scalars())
        if not suspects and len(found) < n:
            found += _next_waiting(connection, queue, n - len(found), rota or Rota(), older_than_s)
    return found


def task_of(db: Database, job_id: str) -> str:
    """Return what a job that is there is for."""
    with db.autocommit() as connection:
        return str(connection.execute(text("SELECT task FROM jobs WHERE id = :id"), {"id": job_id}).scalar_one())

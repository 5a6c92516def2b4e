"""Dispatch queries: the queues with queued jobs, the jobs to announce, the jobs that a worker may claim directly.

Safe for two dispatchers at once: locked rows are skipped, and every UPDATE names the state that it leaves. All ages are
counted by the database's clock.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from headrace.store.db.database import Database, with_setting
from headrace.store.db.presence import GONE_AFTER_S
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.scheduling.deficit_round_robin import AGED_EVERY, Candidate, RoundRobinState, choose
from headrace.store.schema.job_states import UNSERVED_QUEUE

# The dispatcher needs no exact count above this, and counting reads every row.
MAX_COUNTED = 100_000

BATCH_RANK = CLASS_RANKS[ServiceClass.BATCH]


_IS_WAITING = "jobs.queue = :queue AND state = 'queued' AND announced_at IS NULL AND NOT is_suspect"

_CANDIDATE = """
    jobs.id, jobs.tenant_id, jobs.class_rank, jobs.priority,
    GREATEST(jobs.cost_tokens, jobs.input_tokens) AS cost_tokens,
    CAST(extract(epoch FROM COALESCE(jobs.deadline_at, 'infinity')) AS float8) AS deadline,
    CAST(extract(epoch FROM now() - GREATEST(jobs.created_at, jobs.start_after)) AS float8) AS waited_s
"""
_NAMES = "id, tenant_id, class_rank, priority, cost_tokens, deadline, waited_s"

# Read the candidates for the next ``n`` turns of a queue. A flow is the jobs of one tenant in one class. An index skip
# scan finds the flows from tenant to tenant, starting after the last served tenant and going round once. Each flow
# gives a few of its first jobs, more than it is likely to have turns, because a flow without jobs loses its credit. So
# the number of rows read depends on ``n`` and not on the backlog. The longest-waiting jobs are added.
_CANDIDATES = text(f"""
WITH RECURSIVE flows AS (
    SELECT class_rank, last, last AS tenant_id, false AS is_second_time, 0 AS num
    FROM unnest(CAST(:ranks AS smallint[]), CAST(:last AS text[])) AS r(class_rank, last)
    UNION ALL
    SELECT flows.class_rank, last, found.tenant_id, found.is_second_time, num + 1
    FROM flows CROSS JOIN LATERAL (
        (SELECT jobs.tenant_id, flows.is_second_time FROM jobs
            WHERE {_IS_WAITING} AND jobs.class_rank = flows.class_rank AND jobs.tenant_id > flows.tenant_id
            ORDER BY jobs.tenant_id LIMIT 1)
        UNION ALL
        (SELECT jobs.tenant_id, true FROM jobs
            WHERE {_IS_WAITING} AND jobs.class_rank = flows.class_rank AND NOT flows.is_second_time
            ORDER BY jobs.tenant_id LIMIT 1)
        LIMIT 1
    ) AS found
    WHERE num < :most_flows AND NOT (found.is_second_time AND found.tenant_id > last)
), heads AS (
    SELECT job.id, job.tenant_id, job.class_rank, job.priority, job.cost_tokens, job.deadline, job.waited_s FROM (
        SELECT class_rank, tenant_id, count(*) OVER (PARTITION BY class_rank) AS num_flows FROM flows WHERE num > 0
    ) AS flow CROSS JOIN LATERAL (
        SELECT {_CANDIDATE} FROM jobs
        WHERE {_IS_WAITING} AND jobs.class_rank = flow.class_rank AND jobs.tenant_id = flow.tenant_id
            AND created_at <= now() - make_interval(secs => :older_than_s)
        ORDER BY priority, deadline_at, id LIMIT 1 + LEAST(:n, GREATEST(2, 4 * :n / num_flows))
    ) AS job
), longest AS (
    SELECT {_CANDIDATE} FROM (
        SELECT id, tenant_id, class_rank, priority, cost_tokens, input_tokens, deadline_at, created_at, start_after,
            queue, state, announced_at, is_suspect
        FROM jobs
        WHERE jobs.queue = :queue AND state = 'queued'
            AND created_at <= now() - make_interval(secs => GREATEST(:ageing_s, :older_than_s))
        ORDER BY created_at LIMIT :most_looked_at
    ) AS jobs
    WHERE {_IS_WAITING} AND (start_after IS NULL OR start_after <= now() - make_interval(secs => :ageing_s))
    ORDER BY GREATEST(created_at, start_after) LIMIT :num_aged
)
SELECT {_NAMES} FROM (SELECT {_NAMES} FROM heads UNION SELECT {_NAMES} FROM longest) AS found
WHERE NOT EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = :queue)
""")

# Mark waiting jobs as announced. ``state || ''``: see ``store.jobs.claim_queries``.
_TAKE_WAITING = text("""
WITH next AS (
    SELECT id FROM jobs
    WHERE id = ANY(CAST(:ids AS text[])) AND state || '' = 'queued' AND announced_at IS NULL AND NOT is_suspect
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE jobs SET announced_at = clock_timestamp() FROM next WHERE jobs.id = next.id
RETURNING jobs.id
""")

# Mark long announced jobs as announced again.
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

# Count the jobs of each queue. The names of the queues are found by an index skip scan, so the cost does not depend on
# the lengths of the queues.
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
        LIMIT :most) AS counted) + (
        SELECT count(*) FROM jobs WHERE state = 'running' AND jobs.queue = names.queue AND class_rank = :batch
    ) AS batch_under_way,
    (SELECT CAST(COALESCE(sum(COALESCE(slots, :usual_slots)), :usual_slots) AS int) FROM worker_processes
        WHERE worker_processes.queue = names.queue
            AND seen_at > now() - make_interval(secs => :gone_after_s)) AS num_slots
FROM names WHERE queue IS NOT NULL AND queue <> :unserved
""")

# Make every announced job wait again.
_FORGET = text("UPDATE jobs SET announced_at = NULL WHERE state = 'queued' AND announced_at IS NOT NULL")

_OPEN = "jobs.queue = asked.queue AND state = 'queued'"

# Find out which of some queues have claimable jobs.
_CLAIMABLE = text(f"""
SELECT
    EXISTS (SELECT FROM jobs WHERE {_OPEN} AND is_suspect) AS suspects,
    EXISTS (SELECT FROM jobs WHERE {_OPEN} AND NOT is_suspect) AS others
FROM unnest(CAST(:queues AS text[])) AS asked(queue)
WHERE NOT EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = asked.queue)
""")

# Count the running jobs of each worker of some queues.
_LOADS = text("""
SELECT owner, count(*) AS num_jobs, bool_or(is_suspect) AS is_alone FROM jobs
WHERE state = 'running' AND queue = ANY(CAST(:queues AS text[])) AND lease_expires_at > now() GROUP BY owner
""")

# Try to become the one worker of the queue that drains itself for a suspect.
_BECOME_CLOSER = text("SELECT pg_try_advisory_xact_lock(hashtextextended('headrace: runs alone in ' || :queue, 0))")

# Find announced jobs that nothing has claimed: their hints may be lost.
_UNCLAIMED = text("""
SELECT id FROM jobs
WHERE queue = :queue AND state = 'queued' AND announced_at <= now() - make_interval(secs => :older_than_s)
    AND NOT is_suspect AND NOT EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = :queue)
ORDER BY announced_at, id LIMIT :n
""")

# Find suspects in the order to run them: first those that lost the fewest workers, charged or not. A job that ends its
# worker mostly does so in its first steps, so it is one of the newest there. The newest few of a worker come last: the
# others need not wait while these end the next worker. Among the others none waits for jobs that began later.
_NEWEST = 4
_SUSPECTS = text(f"""
SELECT id FROM (
    SELECT jobs.*, last.started_at AS began_at,
        rank() OVER (PARTITION BY last.worker ORDER BY last.started_at DESC) AS place,
        GREATEST(0, -crashes + (
            SELECT count(*) FROM attempts WHERE attempts.job_id = jobs.id AND outcome = 'worker_lost')) AS num_uncharged
    FROM jobs LEFT JOIN attempts AS last ON last.job_id = jobs.id AND last.epoch = jobs.epoch
    WHERE queue = :queue AND state = 'queued' AND is_suspect
        AND created_at <= now() - make_interval(secs => :older_than_s)
        AND NOT EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = :queue)
) AS suspects
ORDER BY crashes, num_uncharged, LEAST(place, {_NEWEST}) DESC, began_at, class_rank, priority, deadline_at, id LIMIT :n
""")


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """A queue with queued jobs: the numbers of waiting and of announced jobs, counted up to a limit."""

    queue: str
    waiting: int
    announced: int
    oldest_announced_s: float | None
    is_paused: bool = False
    # Announced or running jobs of the batch class.
    batch_under_way: int = 0
    # Jobs that the live workers run together.
    num_slots: int = 0


@dataclass(slots=True)
class RoundRobin:
    """The round-robin state of each queue. A dispatcher and each worker keep their own; a new one starts empty."""

    ageing_s: float = 60.0
    states: dict[str, RoundRobinState] = field(default_factory=dict)

    def choose(self, queue: str, candidates: Iterable[Candidate], n: int) -> list[str]:
        """Return the next ``n`` jobs and move the queue's state past them."""
        state = self.states.get(queue, RoundRobinState())
        chosen, self.states[queue] = choose(candidates, n, state, ageing_s=self.ageing_s)
        return [job.id for job in chosen]


BY_INDEX = """
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
    set_config('enable_sort', 'off', true)
"""
"""Makes the rest of the transaction read rows in the order of an index, one by one.

While the statistics are still those of a small table, reading and sorting the whole table looks cheap. And between two
vacuums an index has many entries of deleted rows. An index scan marks such entries, so the next scan passes over them;
a bitmap scan does not, and reads them again each time.
"""
_BY_INDEX = text(BY_INDEX)


_MOST_FLOWS = 256
_MOST_LOOKED_AT = 4096


def _next_waiting(
    connection: Connection,
    queue: str,
    n: int,
    round_robin: RoundRobin,
    older_than_s: float = 0.0,
    most_batch: int | None = None,
) -> list[str]:
    last = round_robin.states.get(queue, RoundRobinState()).last
    values = {
        "queue": queue,
        "n": n,
        "ranks": list(CLASS_RANKS.values()),
        "last": [last.get(rank, "") for rank in CLASS_RANKS.values()],
        "most_flows": min(_MOST_FLOWS, max(16, 2 * n)),
        "older_than_s": float(older_than_s),
        "ageing_s": round_robin.ageing_s,
        "num_aged": n // AGED_EVERY + 1,
        "most_looked_at": _MOST_LOOKED_AT,
    }
    connection.execute(_BY_INDEX)
    rows = connection.execute(_CANDIDATES, values).mappings()
    found = [Candidate(**row) for row in rows]
    if most_batch is not None:
        better = [job for job in found if job.class_rank < BATCH_RANK]
        # The better classes come first. So at most ``most_batch`` of the chosen jobs are of the batch class, apart from
        # a job that is chosen because it has waited longest.
        n = min(n, len(better) + most_batch)
        found = found if most_batch > 0 else better
    return round_robin.choose(queue, found, n)


def take_waiting(
    db: Database, queue: str, n: int, round_robin: RoundRobin | None = None, *, most_batch: int | None = None
) -> list[str]:
    """Mark the next ``n`` waiting jobs as announced and return their ids, in the order to announce them.

    ``most_batch`` bounds the jobs of the batch class among them. Nothing is taken from a paused queue. Jobs that
    another dispatcher takes at this moment are left out.
    """
    with db.begin() as connection:
        chosen = _next_waiting(connection, queue, n, round_robin or RoundRobin(), most_batch=most_batch)
        taken = set(connection.execute(_TAKE_WAITING, {"ids": chosen}).scalars()) if chosen else set()
    return [job_id for job_id in chosen if job_id in taken]


def take_stale(db: Database, queue: str, older_than_s: float, n: int) -> list[str]:
    """Return jobs that were announced long ago and are not claimed, oldest first, to be announced again."""
    values = {"queue": queue, "older_than_s": float(older_than_s), "n": n}
    with db.autocommit() as connection:
        return list(connection.execute(_TAKE_STALE, values).scalars())


def waiting_queues(db: Database, most: int = MAX_COUNTED, *, usual_slots: int = 1) -> list[QueueDepth]:
    """Return every queue that has queued jobs, with numbers up to ``most``.

    ``usual_slots``: of a worker that does not report them, and of a queue without a live worker.
    """
    values = {"most": most, "batch": BATCH_RANK, "unserved": UNSERVED_QUEUE}
    values |= {"usual_slots": usual_slots, "gone_after_s": GONE_AFTER_S}
    with db.autocommit() as connection:
        rows = with_setting(connection, BY_INDEX).execute(_DEPTHS, values).mappings().all()
    return [QueueDepth(**row) for row in rows]


def forget_announcements(db: Database) -> int:
    """Make every queued job wait again, because the broker lost the hints; return the number of jobs."""
    with db.autocommit() as connection:
        return connection.execute(_FORGET).rowcount


@dataclass(frozen=True, slots=True)
class Claimable:
    """Whether a worker's queues have jobs to claim without a hint: suspects, which must run alone, and other jobs."""

    suspects: bool
    others: bool


def claimable(db: Database, *queues: str) -> Claimable:
    """Return whether ``claim_candidates`` would find jobs. Reads one or two index entries of each queue."""
    with db.autocommit() as connection:
        rows = connection.execute(_CLAIMABLE, {"queues": list(queues)}).all()
    return Claimable(suspects=any(row.suspects for row in rows), others=any(row.others for row in rows))


class Closer:
    """The one worker of a queue that takes no new jobs until a suspect can run alone in it. For one thread."""

    def __init__(self, connection: Connection, queues: Sequence[str]) -> None:
        self._connection = connection
        self._queues = queues

    def is_needed(self) -> bool:
        """Return whether a suspect waits. Raises Unavailable.

        Call it about every second: Postgres ends the idle transaction that makes this worker the closer, so a process
        that was stopped does not stay the closer.
        """
        rows = self._connection.execute(_CLAIMABLE, {"queues": list(self._queues)})
        return any(row.suspects for row in rows)


@contextmanager
def closing(
    db: Database, queue: str, owner: str, *, heed_load: bool, adapters: Sequence[str] = ()
) -> Iterator[Closer | None]:
    """Make ``owner`` the closer for the block; yield None while another worker is the closer or runs a suspect.

    ``heed_load``: yield None also while another live worker runs fewer jobs of the queue. ``adapters``: more queues of
    the same workers.
    """
    with db.begin() as connection:
        loads = {row.owner: row for row in connection.execute(_LOADS, {"queues": [queue, *adapters]})}
        mine = loads.pop(owner, None)
        num_mine = 0 if mine is None else mine.num_jobs
        others = loads.values()
        has_turn = not any(other.is_alone or (heed_load and other.num_jobs < num_mine) for other in others)
        is_closer = has_turn and connection.execute(_BECOME_CLOSER, {"queue": queue}).scalar_one()
        yield Closer(connection, (queue, *adapters)) if is_closer else None


def claim_candidates(
    db: Database,
    queue: str,
    n: int,
    *,
    suspects: bool = False,
    older_than_s: float = 0.0,
    round_robin: RoundRobin | None = None,
) -> list[str]:
    """Return at most ``n`` queued jobs that a worker may claim without a hint, in the order to claim them.

    Either suspects, or other jobs: those announced at least ``older_than_s`` ago, then waiting jobs accepted that long
    ago. The jobs are not reserved: the first worker that claims a job has it.
    """
    values = {"queue": queue, "n": n, "older_than_s": float(older_than_s)}
    with db.begin() as connection:
        found = list(connection.execute(_SUSPECTS if suspects else _UNCLAIMED, values).scalars())
        if not suspects and len(found) < n:
            found += _next_waiting(connection, queue, n - len(found), round_robin or RoundRobin(), older_than_s)
    return found


def task_of(db: Database, job_id: str) -> str:
    """Return the task of a stored job."""
    with db.autocommit() as connection:
        return str(connection.execute(text("SELECT task FROM jobs WHERE id = :id"), {"id": job_id}).scalar_one())

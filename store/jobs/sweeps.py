"""The dispatcher's statements: what time does to jobs, and what to forget. Their order is
``store.scheduling.dispatch_queries``'s.

Each is safe to run twice and by two dispatchers at once: rows that another one holds are skipped, and every UPDATE
names the state it leaves. All ages and deadlines are the database's.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import text

from store.db.database import Database
from store.db.leader_election import Leadership, lead
from store.failpoints import failpoint
from store.jobs.terminal import COMPLETED_AFTER, ERROR_AFTER, STATE_AFTER, conclude, verdict
from store.schema.job_states import JobState

# "head" + "race" in ASCII; any constant does that nothing else on the server locks.
LEADER_LOCK = 0x68656164_72616365


@dataclass(frozen=True, slots=True)
class SweepResult:
    """How many jobs of dead workers went back to the queue, ran out of attempts, or had been asked to stop.

    ``ended`` are the jobs of the last two kinds: nobody else tells their followers.
    """

    requeued: int
    failed: int
    cancelled: int
    ended: tuple[str, ...] = ()

    @property
    def num_jobs(self) -> int:
        """How many jobs it took from their workers."""
        return self.requeued + self.failed + self.cancelled


# Whoever let a lease run out may have died of the job, so it is charged as a crash and runs alone next time.
_LOST = text(f"""
WITH lost AS (
    SELECT id, {verdict(":blame", ":blame")} AS verdict FROM jobs
    WHERE state = 'running' AND lease_expires_at < now()
    ORDER BY lease_expires_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
), freed AS (
    UPDATE jobs SET
        state = {STATE_AFTER}, error = {ERROR_AFTER}, completed_at = {COMPLETED_AFTER},
        attempt = attempt - CASE WHEN :blame THEN 0 ELSE 1 END, crashes = crashes + CASE WHEN :blame THEN 1 ELSE 0 END,
        is_suspect = is_suspect OR :blame, owner = NULL, lease_expires_at = NULL, announced_at = NULL
    FROM lost WHERE jobs.id = lost.id AND jobs.state = 'running'
    RETURNING jobs.id, jobs.state, jobs.epoch
), closed AS (
    UPDATE attempts SET
        ended_at = clock_timestamp(), outcome = 'worker_lost',
        error = jsonb_build_object('code', 'worker_lost', 'message', 'the lease ran out')
    FROM freed WHERE attempts.job_id = freed.id AND attempts.epoch = freed.epoch
), events AS (
    INSERT INTO job_events (job_id, kind, epoch) SELECT id, 'lease_expired', epoch FROM freed
)
SELECT id, state FROM freed
""")


def sweep_leases(db: Database, limit: int = 500, *, blame: bool = True) -> SweepResult:
    """Take jobs from workers whose lease ran out: back to the queue, or to their end if nothing is left to try.

    Without ``blame`` nothing is charged, for leases that could not be renewed because Postgres itself was away.
    """
    with db.begin() as connection:
        rows = connection.execute(_LOST, {"limit": limit, "blame": blame}).all()
        if rows:
            failpoint("sweep.midway")
        ended = tuple(row.id for row in rows if row.state != JobState.QUEUED)
        conclude(connection, ended)
    states = [row.state for row in rows]
    return SweepResult(
        requeued=states.count(JobState.QUEUED),
        failed=states.count(JobState.FAILED),
        cancelled=states.count(JobState.CANCELLED),
        ended=ended,
    )


# A running job is first its worker's to end, with what it has; the grace is for a worker that is hung.
_OVERDUE = text("""
WITH overdue AS (
    SELECT id FROM jobs
    WHERE state IN ('queued', 'running') AND deadline_at < now()
        AND (state = 'queued' OR deadline_at < now() - make_interval(secs => :grace_s))
    ORDER BY deadline_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE jobs SET
    state = 'expired', completed_at = clock_timestamp(), owner = NULL, lease_expires_at = NULL,
    error = jsonb_build_object(
        'code', 'deadline_exceeded', 'message', 'the deadline passed before the job was done',
        'retryable', false, 'attempt', attempt)
FROM overdue WHERE jobs.id = overdue.id AND jobs.state IN ('queued', 'running')
RETURNING jobs.id
""")


def expire_overdue(db: Database, limit: int = 500, *, grace_s: float = 30.0) -> list[str]:
    """Expire queued jobs past their deadline, and running ones past it by ``grace_s``; return their ids."""
    with db.begin() as connection:
        expired = connection.execute(_OVERDUE, {"limit": limit, "grace_s": float(grace_s)}).scalars().all()
        if expired:
            failpoint("sweep.midway")
        conclude(connection, expired)
    return list(expired)


# Only rows that ``store.retention.erasure`` has emptied: how long contents are kept is each tenant's own.
_PURGE_JOBS = text("""
WITH old AS (
    SELECT id FROM jobs
    WHERE completed_at < now() - make_interval(secs => :ttl_s)
        AND input_purged_at IS NOT NULL AND output_purged_at IS NOT NULL
        -- A later response goes on from what this one said.
        AND (SELECT count(*) FROM responses AS said WHERE said.job_id = jobs.id AND said.input <> '[]') = 0
    ORDER BY completed_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
DELETE FROM jobs USING old WHERE jobs.id = old.id
""")

_PURGE_KEYS = text("""
WITH old AS (
    SELECT tenant_id, route, key FROM idempotency_keys WHERE created_at < now() - make_interval(secs => :ttl_s)
    ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_keys AS held USING old
WHERE held.tenant_id = old.tenant_id AND held.route = old.route AND held.key = old.key
""")


# With them go their idempotency keys. Lines and words of these batches have gone before
# (``store.retention.retention``).
_PURGE_BATCHES = text("""
WITH old AS (
    SELECT id FROM batches
    WHERE purged_at IS NOT NULL
        AND COALESCE(completed_at, failed_at, expired_at, cancelled_at) < now() - make_interval(secs => :ttl_s)
    ORDER BY purged_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
DELETE FROM batches USING old WHERE batches.id = old.id
""")


def purge(db: Database, record_ttl_s: float, idempotency_ttl_s: float, limit: int) -> int:
    """Delete emptied jobs, emptied batches and idempotency keys past their time, at most ``limit`` of each.

    Returns how many rows of the three went.
    """
    record, keys = {"ttl_s": float(record_ttl_s)}, {"ttl_s": float(idempotency_ttl_s)}
    num_rows = 0
    for statement, ttl in ((_PURGE_KEYS, keys), (_PURGE_JOBS, record), (_PURGE_BATCHES, record)):
        with db.autocommit() as connection:
            num_rows += connection.execute(statement, {**ttl, "limit": limit}).rowcount
    return num_rows


def leader_lock(db: Database) -> AbstractContextManager[Leadership | None]:
    """Hold the dispatchers' lock for the block if it is free, see ``store.db.leader_election``."""
    return lead(db, LEADER_LOCK)

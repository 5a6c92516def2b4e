"""Jobs for the dispatcher: expired leases, passed deadlines, rejected versions, purges.

Each statement is safe to run twice and by two dispatchers at once: locked rows are skipped, and every UPDATE names the
state that it leaves. All ages and deadlines are counted by the database's clock. (The order of jobs:
``store.scheduling.dispatch_queries``.)
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Row, TextClause, text

from headrace.store.db.database import Database
from headrace.store.db.leader_election import Leadership, lead
from headrace.store.failpoints import failpoint
from headrace.store.jobs.erasure import erasure_parts
from headrace.store.jobs.parent_part import parent_part
from headrace.store.jobs.terminal import COMPLETED_AFTER, ERROR_AFTER, STATE_AFTER, blamed, conclude, verdict
from headrace.store.schema.job_states import JobState

# "head" + "race" in ASCII. It may be any constant that no other program locks on this server.
LEADER_LOCK = 0x68656164_72616365


# Lock the flows of due steps, before any of the steps. A locked flow is left for the next sweep, with its steps.
_LOCK_FLOWS = """
SELECT id FROM jobs WHERE id = ANY (ARRAY(
    SELECT parent_id FROM jobs WHERE {due} AND parent_id IS NOT NULL ORDER BY {order} LIMIT :limit))
ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
"""
_FLOWS_OF_LOST = text(
    _LOCK_FLOWS.format(due="state = 'running' AND lease_expires_at < now()", order="lease_expires_at")
)

# A row of ``jobs`` is no step, or a step of a flow that this transaction has locked.
_IS_OURS = "(parent_id IS NULL OR parent_id = ANY(CAST(:flows AS text[])))"

# Take jobs with an expired lease from their workers. A job that may have killed its worker is charged a crash and runs
# alone next time.
_TAKE_LOST = text(f"""
WITH lost AS (
    SELECT id, {blamed(":blame")} AS crashed FROM jobs
    WHERE state = 'running' AND lease_expires_at < now() AND {_IS_OURS}
    ORDER BY lease_expires_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
), judged AS (
    SELECT id, crashed, {verdict(":blame", "crashed")} AS verdict FROM lost JOIN jobs USING (id)
), freed AS (
    UPDATE jobs SET
        state = {STATE_AFTER}, error = {ERROR_AFTER}, completed_at = {COMPLETED_AFTER},
        attempt = attempt - CASE WHEN :blame THEN 0 ELSE 1 END, crashes = crashes + CASE WHEN crashed THEN 1 ELSE 0 END,
        is_suspect = is_suspect OR crashed, owner = NULL, lease_expires_at = NULL, announced_at = NULL
    FROM judged WHERE jobs.id = judged.id AND jobs.state = 'running'
    RETURNING jobs.id, jobs.tenant_id, jobs.queue, jobs.model, jobs.state, jobs.epoch, jobs.traceparent,
        jobs.created_at
), closed AS (
    UPDATE attempts SET
        ended_at = clock_timestamp(), outcome = 'worker_lost',
        error = jsonb_build_object('code', 'worker_lost', 'message', 'the lease ran out')
    FROM freed WHERE attempts.job_id = freed.id AND attempts.epoch = freed.epoch
    RETURNING job_id, attempt, worker, started_at, ended_at
), events AS (
    INSERT INTO job_events (job_id, kind, epoch) SELECT id, 'lease_expired', epoch FROM freed
)
SELECT id, tenant_id, queue, model, state, epoch, traceparent, closed.attempt, worker, started_at, ended_at,
    created_at, CASE WHEN traceparent IS NOT NULL THEN (
        SELECT before.ended_at FROM attempts AS before
        WHERE before.job_id = freed.id AND before.epoch = freed.epoch - 1)
    END AS requeued_at
FROM freed LEFT JOIN closed ON closed.job_id = freed.id
""")

# Expire jobs past their deadline. A worker ends its running jobs itself and keeps their output so far; the grace period
# is for a worker that hangs.
_OVERDUE = text("""
SELECT id, task = 'flow' AS is_flow FROM jobs
WHERE state IN ('queued', 'running') AND deadline_at < now() AND parent_id IS NULL
    AND (state = 'queued' OR deadline_at < now() - make_interval(secs => :grace_s)
        OR task = 'flow' AND NOT EXISTS (
            SELECT FROM jobs AS step WHERE step.parent_id = jobs.id AND step.state = 'running'))
ORDER BY deadline_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")
# The trigger that writes the usage ledger needs an update of the usage and the end of the job in one statement.
_SET_EXPIRED = """
UPDATE jobs SET
    usage = usage, state = 'expired', completed_at = clock_timestamp(), owner = NULL, lease_expires_at = NULL,
    error = jsonb_build_object(
        'code', 'deadline_exceeded', 'message', 'the deadline passed before the job was done',
        'retryable', false, 'attempt', attempt)"""
_EXPIRE = text(f"""{_SET_EXPIRED}
WHERE id = ANY(CAST(:ids AS text[])) AND state IN ('queued', 'running')
""")

# Expire the open steps of these flows, which have expired.
_EXPIRE_STEPS = text(f"""{_SET_EXPIRED}
WHERE parent_id = ANY(CAST(:flows AS text[])) AND state IN ('queued', 'running')
RETURNING id
""")

# Fail the queued jobs of rejected versions: no worker will take them.
_IS_REJECTED = """state = 'queued'
        AND queue = ANY (ARRAY(SELECT model || '@' || version FROM model_versions WHERE state = 'rejected'))"""
_FLOWS_OF_REJECTED = text(_LOCK_FLOWS.format(due=_IS_REJECTED, order="queue, created_at"))
_FAIL_REJECTED = text(f"""
WITH refused AS (
    SELECT id FROM jobs
    WHERE {_IS_REJECTED} AND {_IS_OURS}
    ORDER BY queue, created_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE jobs SET
    state = 'failed', completed_at = clock_timestamp(),
    error = jsonb_build_object(
        'code', 'model_rejected', 'message', queue || ' has failed its verification, so no worker runs it',
        'retryable', false, 'attempt', attempt)
FROM refused WHERE jobs.id = refused.id AND jobs.state = 'queued'
RETURNING jobs.id
""")

# Put jobs whose time has come into the queues of their versions. Steps of a job go with it; it is in no queue itself.
_START_DUE = text("""
WITH due AS (
    SELECT id FROM jobs
    WHERE state = 'queued' AND queue = 'cache' AND start_after <= now() AND task <> 'flow'
    ORDER BY start_after LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE jobs SET queue = model || '@' || model_version FROM due WHERE jobs.id = due.id AND jobs.state = 'queued'
""")

# Delete old idempotency keys.
_PURGE_KEYS = text("""
WITH old AS (
    SELECT tenant_id, route, key FROM idempotency_keys WHERE created_at < now() - make_interval(secs => :ttl_s)
    ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_keys AS held USING old
WHERE held.tenant_id = old.tenant_id AND held.route = old.route AND held.key = old.key
""")


@dataclass(frozen=True, slots=True)
class LostAttempt:
    """An attempt that its worker did not end, of a traced job. Times are the database's.

    ``requeued_at``: when the attempt before it ended; None without one.
    """

    job_id: str
    tenant_id: str
    queue: str
    model: str
    epoch: int
    attempt: int
    worker: str
    created_at: datetime
    requeued_at: datetime | None
    started_at: datetime
    ended_at: datetime
    traceparent: str


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Numbers of jobs of dead workers: requeued, failed without attempts left, cancelled on request.

    ``ended``: the ids of the failed and cancelled jobs. The caller must end their streams. ``traced``: the lost
    attempts of traced jobs. ``lost``: of each job of a dead worker its id, the worker and the new state.
    """

    requeued: int
    failed: int
    cancelled: int
    ended: tuple[str, ...] = ()
    traced: tuple[LostAttempt, ...] = ()
    lost: tuple[tuple[str, str, JobState], ...] = field(default=(), compare=False)

    @property
    def num_jobs(self) -> int:
        """All jobs that were taken from dead workers."""
        return self.requeued + self.failed + self.cancelled


def sweep_leases(db: Database, limit: int = 500, *, blame: bool = True) -> SweepResult:
    """Take jobs with an expired lease from their workers: back to the queue, or ended if no attempt is left.

    Without ``blame`` nothing is charged: the leases could not be renewed because Postgres itself was away.
    """
    with db.begin() as connection:
        flows = list(connection.execute(_FLOWS_OF_LOST, {"limit": limit}).scalars())
        rows = connection.execute(_TAKE_LOST, {"limit": limit, "blame": blame, "flows": flows}).all()
        if rows:
            failpoint("sweep.midway")
        ended = tuple(row.id for row in rows if row.state != JobState.QUEUED)
        conclude(connection, ended)
        if flows:
            ended += parent_part().settle(connection, flows, db.seal, ended=ended).ended
    states = [row.state for row in rows]
    return SweepResult(
        requeued=states.count(JobState.QUEUED),
        failed=states.count(JobState.FAILED),
        cancelled=states.count(JobState.CANCELLED),
        ended=ended,
        traced=tuple(_lost(row) for row in rows if row.traceparent and row.started_at),
        lost=tuple((row.id, row.worker, JobState(row.state)) for row in rows if row.worker),
    )


def _lost(row: Row[Any]) -> LostAttempt:
    return LostAttempt(
        job_id=row.id, **{name: getattr(row, name) for name in LostAttempt.__slots__ if name != "job_id"}
    )


def expire_overdue(db: Database, limit: int = 500, *, grace_s: float = 30.0) -> list[str]:
    """Expire queued jobs past their deadline, and running ones past it by ``grace_s``; return their ids."""
    with db.begin() as connection:
        rows = connection.execute(_OVERDUE, {"limit": limit, "grace_s": float(grace_s)}).all()
        expired = [row.id for row in rows]
        flows = [row.id for row in rows if row.is_flow]
        # Before they end: the trigger that writes the usage ledger reads the usage then.
        if flows:
            parent_part().note_usage(connection, flows)
        if expired:
            connection.execute(_EXPIRE, {"ids": expired})
            failpoint("sweep.midway")
        steps = list(connection.execute(_EXPIRE_STEPS, {"flows": flows}).scalars()) if flows else []
        conclude(connection, [*expired, *steps])
        if flows:
            parent_part().settle(connection, flows, db.seal, ended=steps)
    return expired


def start_due(db: Database, limit: int) -> int:
    """Let at most ``limit`` jobs go whose ``start_after`` has come; return their number. They are announced later."""
    with db.autocommit() as connection:
        return connection.execute(_START_DUE, {"limit": limit}).rowcount


def fail_rejected(db: Database, limit: int = 500) -> list[str]:
    """Fail queued jobs of model versions that were rejected; return their ids."""
    with db.begin() as connection:
        flows = list(connection.execute(_FLOWS_OF_REJECTED, {"limit": limit}).scalars())
        failed = list(connection.execute(_FAIL_REJECTED, {"limit": limit, "flows": flows}).scalars())
        if failed:
            failpoint("sweep.midway")
        conclude(connection, failed)
        if flows:
            failed += parent_part().settle(connection, flows, db.seal, ended=failed).ended
    return failed


@cache
def _purge_jobs() -> TextClause:
    """Delete old jobs that ``store.jobs.erasure`` has emptied: each tenant has its own retention of contents."""
    needed = "".join(f" AND NOT ({part.needs_row})" for part in erasure_parts() if part.needs_row)
    return text(f"""
WITH old AS (
    SELECT id FROM jobs
    WHERE completed_at < now() - make_interval(secs => :ttl_s)
        AND input_purged_at IS NOT NULL AND output_purged_at IS NOT NULL{needed}
    ORDER BY completed_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
DELETE FROM jobs USING old WHERE jobs.id = old.id
""")


def purge(db: Database, record_ttl_s: float, idempotency_ttl_s: float, limit: int) -> int:
    """Delete idempotency keys, emptied jobs and emptied rows of features past their time, at most ``limit`` of each.

    Returns the number of deleted rows.
    """
    record, keys = {"ttl_s": float(record_ttl_s)}, {"ttl_s": float(idempotency_ttl_s)}
    num_rows = 0
    own = [(text(part.old_rows), record) for part in erasure_parts() if part.old_rows]
    for statement, ttl in ((_PURGE_KEYS, keys), (_purge_jobs(), record), *own):
        with db.autocommit() as connection:
            num_rows += connection.execute(statement, {**ttl, "limit": limit}).rowcount
    return num_rows


def leader_lock(db: Database) -> AbstractContextManager[Leadership | None]:
    """Hold the dispatchers' lock for the block if it is free, see ``store.db.leader_election``."""
    return lead(db, LEADER_LOCK)

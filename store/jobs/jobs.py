"""Jobs for the API: accept, read, list, follow, cancel. Every statement has a condition on the tenant.

The worker's side is ``store.jobs.claims``, the dispatcher's ``store.jobs.sweeps``.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, String, and_, any_, bindparam, func, literal_column, or_, select, text
from sqlalchemy import RowMapping as Row
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from headrace.store.db.database import Database
from headrace.store.errors import CannotOpen, Conflict, Gone, NotFound
from headrace.store.ids import first_id
from headrace.store.jobs.acceptance import (
    Accepted,
    Fallback,
    Idempotency,
    NewJob,
    accept,
    is_known,
    job_of_key,
    job_of_repeated_body,
)
from headrace.store.jobs.job_rows import Job, job_of, just_accepted, select_jobs
from headrace.store.jobs.parent_part import parent_part
from headrace.store.jobs.terminal import conclude
from headrace.store.schema import tables
from headrace.store.schema.job_states import FLOW_TASK, JobState
from headrace.store.seal import Seal, SealContext, open_columns
from headrace.store.streams.checkpoints import (
    Lineage,
    Logprobs,
    Marks,
    deltas_from_json,
    lineage_from_json,
    read_groups,
)
from headrace.store.tasks.registry import BULKY_OUTPUTS

__all__ = [
    "Accepted",
    "Fallback",
    "Idempotency",
    "Job",
    "JobEvent",
    "JobList",
    "NewJob",
    "StoredStream",
    "TenantAndId",
    "accept",
    "find_duplicate",
    "get",
    "get_each",
    "get_many",
    "is_known",
    "job_of_key",
    "job_of_repeated_body",
    "just_accepted",
    "leave",
    "list_jobs",
    "list_steps",
    "request_cancel",
    "step_events",
    "stored_deltas",
    "timeline",
    "why_missing",
]

TenantAndId = tuple[str, str]
"""A tenant, and the id of a job to look for among the tenant's jobs."""


# Find the newest job with one of these fingerprints and count one more caller of it. Cancelled jobs are left out: a
# chat's job is cancelled when its caller disconnects, and the caller's retry needs a new job. So does the retry of a
# job that has failed or expired: an old failure is no answer to it.
_FIND_DUPLICATE = text("""
WITH found AS (
    SELECT id FROM jobs
    WHERE tenant_id = :tenant_id AND fingerprint = ANY(CAST(:fingerprints AS text[]))
        AND created_at > now() - make_interval(secs => :within_s) AND cancel_requested_at IS NULL
        AND state IN ('queued', 'running', 'succeeded')
    ORDER BY id DESC LIMIT 1
)
UPDATE jobs SET callers = LEAST(callers + 1, 32767) FROM found
WHERE jobs.id = found.id AND jobs.cancel_requested_at IS NULL
RETURNING jobs.id
""")

# Read the events of a job, oldest first.
_TIMELINE = text("""
SELECT event.kind, event.epoch, event.at, event.detail
FROM job_events AS event JOIN jobs ON jobs.id = event.job_id
WHERE jobs.tenant_id = :tenant_id AND jobs.id = :job_id
ORDER BY event.id
""")

# Read the events of a flow's steps and their approvals, in the order in which they were committed.
_STEP_EVENTS = text("""
SELECT event.kind, event.epoch, event.at, event.detail
FROM job_events AS event JOIN jobs ON jobs.id = event.job_id
WHERE jobs.tenant_id = :tenant_id AND jobs.id = :job_id AND event.kind IN (
    'step_started', 'step_finished', 'approval_requested', 'approval_decided')
ORDER BY event.id OFFSET :after
""")

# Read the stored stream of an ended job.
_STREAM = text("""
SELECT stream.epoch, stream.deltas, stream.lineage, stream.logprobs
FROM job_streams AS stream JOIN jobs ON jobs.id = stream.job_id
WHERE jobs.tenant_id = :tenant_id AND jobs.id = :job_id
""")

# Cancel a queued job, or ask the worker of a running job to stop. One statement for both, because a worker may claim
# or release the job at this moment.
_CANCEL = text("""
WITH asked AS (
    UPDATE jobs SET
        state = CASE WHEN state = 'queued' AND task <> 'flow' THEN 'cancelled' ELSE state END,
        completed_at = CASE WHEN state = 'queued' AND task <> 'flow' THEN now() END,
        cancel_requested_at = COALESCE(cancel_requested_at, now())
    WHERE tenant_id = :tenant_id AND id = :job_id AND state IN ('queued', 'running') AND parent_id IS NULL
    RETURNING id, state, epoch, task
), events AS (
    INSERT INTO job_events (job_id, kind, epoch) SELECT id, 'cancel_requested', epoch FROM asked
)
SELECT state, task FROM asked
""")

# Subtract one caller. A count at its maximum stays, because the true number is not known; such a job runs to its end.
_LEAVE = text("""
UPDATE jobs SET callers = callers - CAST(callers < 32767 AS int)
WHERE tenant_id = :tenant_id AND id = :job_id AND state IN ('queued', 'running')
RETURNING callers
""")

# Find the jobs that existed and were purged: emptied rows, and deleted rows that the usage ledger still has.
_PURGED = text("""
SELECT asked.tenant_id, asked.id
FROM unnest(CAST(:tenants AS varchar[]), CAST(:ids AS varchar[])) AS asked(tenant_id, id)
WHERE EXISTS (
    SELECT FROM jobs WHERE jobs.tenant_id = asked.tenant_id AND jobs.id = asked.id AND output_purged_at IS NOT NULL
) OR EXISTS (
    SELECT FROM usage_ledger WHERE usage_ledger.tenant_id = asked.tenant_id AND job_id = asked.id
        AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = asked.id)
)
""")


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line of a job's timeline: ``queued``, ``started``, ``released``, ``lease_expired``, or a terminal state."""

    kind: str
    epoch: int
    at: datetime
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredStream:
    """The deltas of an ended job. The first has sequence number 1.

    ``lineage``: the attempts that the deltas came from (``store.streams.checkpoints``). ``logprobs``: one group for
    each delta; empty if the job did not ask for them. ``marks``: as in ``store.streams.checkpoints``.
    """

    epoch: int
    deltas: list[str]
    lineage: Lineage
    logprobs: tuple[Logprobs, ...] = ()
    marks: Marks = ()


def get(db: Database, tenant_id: str, job_id: str) -> Job:
    """Return the job; raise NotFound if the tenant has no job with this id, Gone if it was purged."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return _get(connection, db.seal, tenant_id, job_id)


def get_many(db: Database, tenant_id: str, ids: Sequence[str]) -> list[Job]:
    """Return the jobs in the order of ``ids``, without those that the tenant does not have or that were purged."""
    found = get_each(db, [(tenant_id, job_id) for job_id in ids])
    for error in found.values():
        if isinstance(error, CannotOpen):
            raise error
    return [job for job_id in ids if isinstance(job := found[tenant_id, job_id], Job)]


def get_each(db: Database, pairs: Collection[TenantAndId]) -> dict[TenantAndId, Job | Gone | NotFound | CannotOpen]:
    """Return for each tenant and job id the job, or the error for that tenant.

    Costs one query for the jobs of all tenants, and one more if some are missing.
    """
    if not pairs:
        return {}
    values = {"tenants": [tenant_id for tenant_id, _ in pairs], "ids": [job_id for _, job_id in pairs]}
    with db.autocommit(tenant_ids={*values["tenants"]}) as connection:
        rows = connection.execute(_EACH, values).mappings()
        found = {(row["tenant_id"], row["id"]): _opened(row, db.seal) for row in rows}
        missing = [pair for pair in pairs if pair not in found]
        return {**found, **(_missing(connection, missing) if missing else {})}


# An id contains the time of the process that made it; ``created_at`` is Postgres's time.
_CLOCKS_APART = timedelta(hours=1)

# How many jobs a list looks at before its page ends, whether full or not. No index serves all filters: under row-level
# security Postgres uses none for ``metadata``, because ``@>`` is not leakproof.
_MOST_LOOKED_AT = 5000


class JobList(list[Job]):
    """Jobs by age. ``read_to``: where it stopped looking before the page was full: the list goes on after this id."""

    read_to: str | None = None


def list_jobs(
    db: Database,
    tenant_id: str,
    *,
    state: JobState | None = None,
    model: str | None = None,
    task: str | None = None,
    metadata: Mapping[str, str] | None = None,
    created_after: datetime | None = None,
    parent_id: str | None = None,
    with_steps: bool = False,
    limit: int = 20,
    after: str | None = None,
    descending: bool = True,
) -> JobList:
    """Return at most ``limit`` jobs by age, newest first by default, starting after the id ``after``.

    The outputs lack the fields that may be megabytes each (``BULKY_OUTPUTS``), for example vectors. A purged job is
    returned without its contents. Steps are left out, except those of ``parent_id``, or all with ``with_steps``.

    It looks at a bounded number of jobs, so a page may have fewer that match, or none, although more follow: see
    ``JobList.read_to``.
    """
    jobs = tables.jobs.c
    # The conditions that an index serves, and then those that are checked job by job.
    found = [jobs.tenant_id == tenant_id]
    if state is not None:
        found.append(jobs.state == state)
    if parent_id is not None:
        found.append(jobs.parent_id == parent_id)
    if created_after is not None:
        found.append(jobs.id > first_id("job", created_after - _CLOCKS_APART))
    if after is not None:
        found.append(jobs.id < after if descending else jobs.id > after)
    checked = [jobs.created_at > created_after] if created_after is not None else []
    checked += [column == value for column, value in ((jobs.model, model), (jobs.task, task)) if value is not None]
    if metadata:
        wanted = db.seal.metadata_filters(tenant_id, metadata)
        checked.append(or_(*(jobs.metadata.cast(JSONB).contains(one) for one in wanted)))
    if parent_id is None and not with_steps:
        checked.append(jobs.parent_id.is_(None))
    order = jobs.id.desc() if descending else jobs.id
    looked_at = select(jobs.id).where(*found).order_by(order).limit(literal_column(str(_MOST_LOOKED_AT))).subquery()
    ids = looked_at.c.id
    with db.autocommit(tenant_id=tenant_id) as connection:
        # From an index alone. Both bounds, because by the primary key Postgres may begin with jobs of other tenants.
        oldest, newest, num = connection.execute(select(func.min(ids), func.max(ids), func.count(ids))).one()
        statement = select_jobs(without_bulk=True).where(*found, *checked, jobs.id.between(oldest, newest))
        rows = _read(connection, db.seal, statement.order_by(order).limit(limit)) if num else []
    listed = JobList(map(_without_bulk, rows))
    if len(listed) < limit and num == _MOST_LOOKED_AT:
        listed.read_to = oldest if descending else newest
    return listed


def list_steps(db: Database, tenant_id: str, job_id: str) -> list[Job]:
    """Return the steps of a job, each after those that it needs; none for other jobs. Outputs as of ``list_jobs``."""
    jobs = tables.jobs.c
    statement = select_jobs(without_bulk=True).where(jobs.tenant_id == tenant_id, jobs.parent_id == job_id)
    with db.autocommit(tenant_id=tenant_id) as connection:
        return [_without_bulk(job) for job in _read(connection, db.seal, statement.order_by(jobs.id))]


def find_duplicate(db: Database, tenant_id: str, fingerprints: Sequence[str], within_s: float) -> str | None:
    """Return the newest job with one of these fingerprints, made in the last ``within_s`` seconds.

    A job that was cancelled, has failed or has expired is not found.

    The job is counted to have one more caller: see ``leave``.
    """
    values = {"tenant_id": tenant_id, "fingerprints": list(fingerprints), "within_s": within_s}
    with db.autocommit(tenant_id=tenant_id) as connection:
        found: str | None = connection.execute(_FIND_DUPLICATE, values).scalar_one_or_none()
    return found


def timeline(db: Database, tenant_id: str, job_id: str) -> list[JobEvent]:
    """Return the job's events, oldest first; raise NotFound if the tenant has no job with this id."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_TIMELINE, {"tenant_id": tenant_id, "job_id": job_id}).mappings().all()
        if not rows:
            raise _why_missing(connection, tenant_id, job_id)
    return [JobEvent(**row) for row in rows]


def step_events(db: Database, tenant_id: str, job_id: str, *, after: int) -> list[JobEvent]:
    """Return the events of a job's steps without the first ``after``. Their order never changes."""
    values = {"tenant_id": tenant_id, "job_id": job_id, "after": after}
    with db.autocommit(tenant_id=tenant_id) as connection:
        return [JobEvent(**row) for row in connection.execute(_STEP_EVENTS, values).mappings()]


def stored_deltas(db: Database, tenant_id: str, job_id: str) -> StoredStream | None:
    """Return the stored stream; None if the job has not ended, streamed nothing or is not this tenant's."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_STREAM, {"tenant_id": tenant_id, "job_id": job_id}).mappings().one_or_none()
    if row is None:
        return None
    lineage = lineage_from_json(row["lineage"])
    opened = open_columns(db.seal, SealContext(tenant_id, "job_streams", "", job_id), row, "deltas", "logprobs")
    deltas, marks = deltas_from_json(opened["deltas"])
    return StoredStream(row["epoch"], list(deltas), lineage, read_groups(opened["logprobs"]), marks)


def request_cancel(db: Database, tenant_id: str, job_id: str) -> Job:
    """Cancel a queued job at once; ask the worker of a running job to stop.

    Raises NotFound if the tenant has no job with this id, Conflict if the job has ended.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        return _cancel(connection, db.seal, tenant_id, job_id)


def _cancel(connection: Connection, seal: Seal, tenant_id: str, job_id: str) -> Job:
    asked = connection.execute(_CANCEL, {"tenant_id": tenant_id, "job_id": job_id}).one_or_none()
    if asked is not None and asked.state == JobState.CANCELLED:
        conclude(connection, [job_id])
    if asked is not None and asked.task == FLOW_TASK:
        parent_part().settle(connection, [job_id], seal)
    job = _get(connection, seal, tenant_id, job_id)
    if asked is None and job.parent_id is not None and not job.state.is_terminal:
        raise Conflict(f"job {job_id} is a step of {job.parent_id}: cancel that", code="job_not_cancellable")
    if asked is None:
        raise Conflict(f"job {job_id} is {job.state} and cannot be cancelled any more", code="job_not_cancellable")
    return job


def leave(db: Database, tenant_id: str, job_id: str) -> Job | None:
    """Subtract one caller of the job; cancel the job and return it if that was the last one.

    The row stays locked in between: a new caller is either counted before or finds the job cancelled. Raises as
    ``request_cancel`` does.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        left = connection.execute(_LEAVE, {"tenant_id": tenant_id, "job_id": job_id}).scalar_one_or_none()
        return None if left is not None and left > 0 else _cancel(connection, db.seal, tenant_id, job_id)


_IDS = bindparam("ids", type_=ARRAY(String))
_ASKED = (
    func.unnest(bindparam("tenants", type_=ARRAY(String)), _IDS)
    .table_valued("tenant_id", "id", name="asked")
    .render_derived()
)

# Read jobs by tenant and id. Built once: building it for each call cost a third of a read.
# The condition on the ids makes Postgres use the primary key. With the join alone, a connection may keep the plan that
# it made while the table was nearly empty, which reads all rows of the tenants.
_EACH = (
    select_jobs()
    .select_from(tables.jobs)
    .join(_ASKED, and_(tables.jobs.c.tenant_id == _ASKED.c.tenant_id, tables.jobs.c.id == _ASKED.c.id))
    .where(tables.jobs.c.id == any_(_IDS), tables.jobs.c.output_purged_at.is_(None))
)


def _get(connection: Connection, seal: Seal, tenant_id: str, job_id: str) -> Job:
    jobs = tables.jobs.c
    wanted = select_jobs().where(jobs.tenant_id == tenant_id, jobs.id == job_id, jobs.output_purged_at.is_(None))
    found = _read(connection, seal, wanted)
    if not found:
        raise _why_missing(connection, tenant_id, job_id)
    return found[0]


def _read(connection: Connection, seal: Seal, statement: Select[Any]) -> list[Job]:
    return [job_of(row, seal) for row in connection.execute(statement).mappings()]


def _without_bulk(job: Job) -> Job:
    """Take the bulky fields out of an output that was encrypted: the statement could not see them."""
    if job.output is None or BULKY_OUTPUTS.isdisjoint(job.output):
        return job
    return replace(job, output={name: value for name, value in job.output.items() if name not in BULKY_OUTPUTS})


def _opened(row: Row, seal: Seal) -> Job | CannotOpen:
    """Return the job, or the error of this job alone: other jobs of the same query belong to other callers."""
    try:
        return job_of(row, seal)
    except CannotOpen as error:
        return error


def why_missing(db: Database, tenant_id: str, job_id: str) -> Gone | NotFound:
    """Return the error of a job that was not found: Gone if it was purged, else NotFound."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return _why_missing(connection, tenant_id, job_id)


def _missing(connection: Connection, pairs: Sequence[TenantAndId]) -> dict[TenantAndId, Gone | NotFound]:
    values = {"tenants": [tenant_id for tenant_id, _ in pairs], "ids": [job_id for _, job_id in pairs]}
    purged = {(row.tenant_id, row.id) for row in connection.execute(_PURGED, values)}
    return {
        (tenant_id, job_id): Gone(f"job {job_id} has ended, and its result is no longer kept")
        if (tenant_id, job_id) in purged
        else NotFound(f"no job {job_id}")
        for tenant_id, job_id in pairs
    }


def _why_missing(connection: Connection, tenant_id: str, job_id: str) -> Gone | NotFound:
    return _missing(connection, [(tenant_id, job_id)])[tenant_id, job_id]

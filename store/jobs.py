"""Jobs as their owner sees them: accept, read, list, follow, cancel. Every statement here carries the tenant.

The worker's side is ``store.claims``, the dispatcher's ``store.sweeps``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, Connection, Select, String, any_, bindparam, literal, or_, select, text
from sqlalchemy import RowMapping as Row
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from store import tables
from store.accepting import CLASS_RANKS, Accepted, AcceptedTimes, Idempotency, NewJob, accept, is_known
from store.checkpoints import Lineage, lineage_from_json
from store.db import Database
from store.encryption import Place, Vault
from store.errors import Conflict, Gone, NotFound
from store.logprobs import Logprobs, read_groups
from store.payloads import ServiceClass
from store.sealed_columns import metadata_filters, open_columns, open_job
from store.states import JobState
from store.terminal import conclude

__all__ = [
    "Accepted",
    "Idempotency",
    "Job",
    "JobEvent",
    "NewJob",
    "StoredStream",
    "accept",
    "find_sent_before",
    "get",
    "get_many",
    "is_known",
    "just_accepted",
    "leave",
    "list_jobs",
    "request_cancel",
    "stored_deltas",
    "timeline",
    "why_missing",
]

_CLASSES = {rank: name for name, rank in CLASS_RANKS.items()}


@dataclass(frozen=True, slots=True)
class Job:
    """The stored job. ``num_deltas`` is how many stream deltas are kept; 0 until the job has ended."""

    id: str
    tenant_id: str
    task: str
    state: JobState
    model: str
    model_version: int
    queue: str
    class_rank: int
    priority: int
    payload: dict[str, Any]
    input_tokens: int
    metadata: dict[str, str]
    webhook: dict[str, Any] | None
    epoch: int
    attempt: int
    max_attempts: int
    owner: str | None
    lease_expires_at: datetime | None
    announced_at: datetime | None
    cancel_requested_at: datetime | None
    deadline_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    output: dict[str, Any] | None
    error: dict[str, Any] | None
    usage: dict[str, Any] | None
    output_purged_at: datetime | None
    num_deltas: int

    @property
    def service_class(self) -> ServiceClass:
        """The class that ``class_rank`` stands for."""
        return _CLASSES[self.class_rank]


def just_accepted(job: NewJob, times: AcceptedTimes) -> Job:
    """Return the row of a job that was accepted just now, without reading it."""
    return Job(
        id=job.id,
        tenant_id=job.tenant_id,
        task=job.task,
        state=JobState.QUEUED,
        model=job.model,
        model_version=job.model_version,
        queue=job.queue,
        class_rank=CLASS_RANKS[job.service_class],
        priority=job.priority,
        payload=job.payload,
        input_tokens=job.input_tokens,
        metadata=job.metadata,
        webhook=job.webhook,
        epoch=0,
        attempt=0,
        max_attempts=job.max_attempts,
        owner=None,
        lease_expires_at=None,
        announced_at=times.announced_at,
        cancel_requested_at=None,
        deadline_at=times.deadline_at,
        created_at=times.created_at,
        started_at=None,
        completed_at=None,
        output=None,
        error=None,
        usage=None,
        output_purged_at=None,
        num_deltas=0,
    )


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line of a job's timeline: ``queued``, ``started``, ``released``, ``lease_expired``, or a terminal state."""

    kind: str
    epoch: int
    at: datetime
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredStream:
    """The deltas of the job, as its last attempt ended it; the first has sequence number 1.

    ``lineage`` says which attempts they came from: see ``store.checkpoints``. ``logprobs`` are those of each delta's
    tokens, none if the job did not ask.
    """

    epoch: int
    deltas: list[str]
    lineage: Lineage
    logprobs: tuple[Logprobs, ...] = ()


def get(db: Database, tenant_id: str, job_id: str) -> Job:
    """Return the job; raise NotFound if this tenant has none by that id, Gone if it is no longer kept."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return _get(connection, db.vault, tenant_id, job_id)


def get_many(db: Database, tenant_id: str, ids: Sequence[str]) -> list[Job]:
    """Return those of the jobs that the tenant has and whose results are kept, in the order asked."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_BY_IDS, {"tenant_id": tenant_id, "ids": list(ids)}).mappings()
        found = {row["id"]: _job(row, db.vault) for row in rows}
    return [found[job_id] for job_id in ids if job_id in found]


def list_jobs(
    db: Database,
    tenant_id: str,
    *,
    state: JobState | None = None,
    model: str | None = None,
    task: str | None = None,
    metadata: Mapping[str, str] | None = None,
    created_after: datetime | None = None,
    limit: int = 20,
    after: str | None = None,
    descending: bool = True,
) -> list[Job]:
    """Return at most ``limit`` jobs by age, newest first unless told otherwise, beginning past the id ``after``.

    The vectors of embed jobs, which may be megabytes each, are left out of their outputs. Of a job whose result is kept
    no longer only the row is shown.
    """
    jobs = tables.jobs.c
    statement = (
        _jobs_of(tenant_id, without_vectors=True).order_by(jobs.id.desc() if descending else jobs.id).limit(limit)
    )
    for column, value in ((jobs.state, state), (jobs.model, model), (jobs.task, task)):
        if value is not None:
            statement = statement.where(column == value)
    if metadata:
        wanted = metadata_filters(db.vault, tenant_id, metadata)
        statement = statement.where(or_(*(jobs.metadata.cast(JSONB).contains(one) for one in wanted)))
    if created_after is not None:
        statement = statement.where(jobs.created_at > created_after)
    if after is not None:
        statement = statement.where(jobs.id < after if descending else jobs.id > after)
    with db.autocommit(tenant_id=tenant_id) as connection:
        return [_without_vectors(job) for job in _read(connection, db.vault, statement)]


# What its owner cancelled is over for him: a chat's job ends so when its caller hangs up, who then asks again.
_SENT_BEFORE = text("""
WITH found AS (
    SELECT id FROM jobs
    WHERE tenant_id = :tenant_id AND fingerprint = :fingerprint
        AND created_at > now() - make_interval(secs => :within_s) AND cancel_requested_at IS NULL
    ORDER BY id DESC LIMIT 1
)
UPDATE jobs SET callers = callers + 1 FROM found
WHERE jobs.id = found.id AND jobs.cancel_requested_at IS NULL
RETURNING jobs.id
""")


def find_sent_before(db: Database, tenant_id: str, fingerprint: str, within_s: float) -> str | None:
    """Return the newest job that the same request made within the last ``within_s`` seconds and nobody cancelled.

    Whoever asks is one more caller of it: see ``leave``.
    """
    values = {"tenant_id": tenant_id, "fingerprint": fingerprint, "within_s": within_s}
    with db.autocommit(tenant_id=tenant_id) as connection:
        found: str | None = connection.execute(_SENT_BEFORE, values).scalar_one_or_none()
    return found


_TIMELINE = text("""
SELECT event.kind, event.epoch, event.at, event.detail
FROM job_events AS event JOIN jobs ON jobs.id = event.job_id
WHERE jobs.tenant_id = :tenant_id AND jobs.id = :job_id
ORDER BY event.id
""")


def timeline(db: Database, tenant_id: str, job_id: str) -> list[JobEvent]:
    """Return what happened to the job, oldest first; raise NotFound if this tenant has none by that id."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_TIMELINE, {"tenant_id": tenant_id, "job_id": job_id}).mappings().all()
        if not rows:
            raise _missing(connection, tenant_id, job_id)
    return [JobEvent(**row) for row in rows]


_STREAM = text("""
SELECT stream.epoch, stream.deltas, stream.lineage, stream.logprobs
FROM job_streams AS stream JOIN jobs ON jobs.id = stream.job_id
WHERE jobs.tenant_id = :tenant_id AND jobs.id = :job_id
""")


def stored_deltas(db: Database, tenant_id: str, job_id: str) -> StoredStream | None:
    """Return the kept stream, or None if the job has not ended, streamed nothing or is not this tenant's."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_STREAM, {"tenant_id": tenant_id, "job_id": job_id}).mappings().one_or_none()
    if row is None:
        return None
    # A stream that was stored before there were lineages is its last attempt's alone.
    lineage = lineage_from_json(row["lineage"]) or ((row["epoch"], 0),)
    opened = open_columns(db.vault, Place(tenant_id, "job_streams", "", job_id), row, "deltas", "logprobs")
    return StoredStream(row["epoch"], opened["deltas"], lineage, read_groups(opened["logprobs"]))


# One statement for both, so that a job which a worker claims or hands back at this moment is met in either state.
_CANCEL = text("""
WITH asked AS (
    UPDATE jobs SET
        state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,
        completed_at = CASE state WHEN 'queued' THEN now() END,
        cancel_requested_at = COALESCE(cancel_requested_at, now())
    WHERE tenant_id = :tenant_id AND id = :job_id AND state IN ('queued', 'running')
    RETURNING id, state, epoch
), events AS (
    INSERT INTO job_events (job_id, kind, epoch) SELECT id, 'cancel_requested', epoch FROM asked
)
SELECT state FROM asked
""")


def request_cancel(db: Database, tenant_id: str, job_id: str) -> Job:
    """Cancel a queued job at once; ask the worker of a running one to stop.

    Raises NotFound if this tenant has none by that id, Conflict if the job has ended.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        return _cancel(connection, db.vault, tenant_id, job_id)


def _cancel(connection: Connection, vault: Vault, tenant_id: str, job_id: str) -> Job:
    state = connection.execute(_CANCEL, {"tenant_id": tenant_id, "job_id": job_id}).scalar_one_or_none()
    if state == JobState.CANCELLED:
        conclude(connection, [job_id])
    job = _get(connection, vault, tenant_id, job_id)
    if state is None:
        raise Conflict(f"job {job_id} is {job.state} and cannot be cancelled any more", code="job_not_cancellable")
    return job


_LEAVE = text("""
UPDATE jobs SET callers = callers - 1
WHERE tenant_id = :tenant_id AND id = :job_id AND state IN ('queued', 'running')
RETURNING callers
""")


def leave(db: Database, tenant_id: str, job_id: str) -> Job | None:
    """Note that one who waited for the job has gone; cancel it and return it if that was the last one.

    The row is held from one to the other, so that who comes meanwhile either is counted or finds it cancelled. Raises
    as ``request_cancel`` does.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        left = connection.execute(_LEAVE, {"tenant_id": tenant_id, "job_id": job_id}).scalar_one_or_none()
        return None if left is not None and left > 0 else _cancel(connection, db.vault, tenant_id, job_id)


_COLUMNS = [tables.jobs.c[name] for name in Job.__slots__ if name != "num_deltas"]


_NO_VECTORS = tables.jobs.c.output.op("-", return_type=JSONB)(literal("embeddings")).label("output")


def _jobs_of(tenant_id: str | BindParameter[str], *, without_vectors: bool = False) -> Select[Any]:
    num_deltas = (
        select(tables.job_streams.c.num_deltas)
        .where(tables.job_streams.c.job_id == tables.jobs.c.id)
        .scalar_subquery()
        .label("num_deltas")
    )
    columns = [_NO_VECTORS if without_vectors and column.name == "output" else column for column in _COLUMNS]
    return select(*columns, num_deltas).where(tables.jobs.c.tenant_id == tenant_id)


# Made once: making it, and finding what it was compiled to, cost a third of a read.
_BY_IDS = _jobs_of(bindparam("tenant_id", type_=String)).where(
    tables.jobs.c.id == any_(bindparam("ids", type_=ARRAY(String))), tables.jobs.c.output_purged_at.is_(None)
)


def _get(connection: Connection, vault: Vault, tenant_id: str, job_id: str) -> Job:
    statement = _jobs_of(tenant_id).where(tables.jobs.c.id == job_id, tables.jobs.c.output_purged_at.is_(None))
    found = _read(connection, vault, statement)
    if not found:
        raise _missing(connection, tenant_id, job_id)
    return found[0]


def _read(connection: Connection, vault: Vault, statement: Select[Any]) -> list[Job]:
    return [_job(row, vault) for row in connection.execute(statement).mappings()]


def _without_vectors(job: Job) -> Job:
    """Take vectors out of an output that was sealed, which the statement could not."""
    if job.output is None or "embeddings" not in job.output:
        return job
    return replace(job, output={name: value for name, value in job.output.items() if name != "embeddings"})


def _job(row: Row, vault: Vault) -> Job:
    return Job(**{**open_job(vault, row), "state": JobState(row["state"]), "num_deltas": row["num_deltas"] or 0})


def why_missing(db: Database, tenant_id: str, job_id: str) -> Gone | NotFound:
    """Return the error of a job that was not found: Gone if what is asked for is kept no longer."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return _missing(connection, tenant_id, job_id)


# The ledger remembers those that were computed and whose rows are kept no longer.
_WAS_THERE = text("""
SELECT FROM jobs
WHERE tenant_id = :tenant_id AND id = :job_id AND (input_purged_at IS NOT NULL OR output_purged_at IS NOT NULL)
UNION ALL
SELECT FROM usage_ledger
WHERE tenant_id = :tenant_id AND job_id = :job_id AND NOT EXISTS (SELECT FROM jobs WHERE id = :job_id)
""")


def _missing(connection: Connection, tenant_id: str, job_id: str) -> Gone | NotFound:
    if connection.execute(_WAS_THERE, {"tenant_id": tenant_id, "job_id": job_id}).first() is None:
        return NotFound(f"no job {job_id}")
    return Gone(f"job {job_id} has ended, and its result is no longer kept")

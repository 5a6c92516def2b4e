"""A job's row as a value, and the statement that reads it. Callers use it through ``store.jobs.jobs``."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, Select, Text, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from headrace.store.jobs.acceptance import AcceptedTimes, NewJob
from headrace.store.payloads.job_payload import CLASS_NAMES, ServiceClass
from headrace.store.schema import model_tables, tables
from headrace.store.schema.job_states import JobState
from headrace.store.seal import Seal, open_job
from headrace.store.tasks.registry import BULKY_OUTPUTS


@dataclass(frozen=True, slots=True)
class Job:
    """The stored job. ``num_deltas``: the number of stored stream deltas; 0 until the job has ended.

    ``model_digest``: of the version that runs it. ``cache``: as in ``store.schema.job_states``. ``cache_source``:
    the job whose answer it gets. A step has ``parent_id``, ``step`` and ``needs``; a flow has the ``answer_id`` of the
    step whose output and stream are its own.
    """

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
    cache: str | None = None
    cache_source: str | None = None
    model_digest: str | None = None
    parent_id: str | None = None
    step: str | None = None
    needs: list[str] | None = None
    answer_id: str | None = None

    @property
    def service_class(self) -> ServiceClass:
        """The class that ``class_rank`` stands for."""
        return CLASS_NAMES[self.class_rank]

    @property
    def streamed_as(self) -> str:
        """The id of the job with its stream: of a flow its step; while it waits for another job's answer, that job."""
        if self.answer_id and not self.state.is_terminal:
            return self.answer_id
        return self.cache_source if self.cache_source and self.state is JobState.QUEUED else self.id


def just_accepted(job: NewJob, times: AcceptedTimes) -> Job:
    """Return the row of a job that was accepted just now, without reading it."""
    row: dict[str, Any] = dict.fromkeys(Job.__slots__)
    row |= {name: getattr(job, name) for name in row if hasattr(NewJob, name)}
    row |= {"state": JobState.QUEUED, "epoch": 0, "attempt": 0, "num_deltas": 0}
    return Job(**{**row, **asdict(times)})


# The columns of ``jobs`` that a Job has, and its output without the fields that may be megabytes each.
_COLUMNS = [tables.jobs.c[name] for name in Job.__slots__ if name not in {"num_deltas", "model_digest"}]
_SHORT_OUTPUT = tables.jobs.c.output.op("-", return_type=JSONB)(literal(sorted(BULKY_OUTPUTS), ARRAY(Text))).label(
    "output"
)


def select_jobs(*, without_bulk: bool = False) -> Select[Any]:
    """Return the statement that reads jobs' rows. The caller adds the condition on the tenant."""
    num_deltas = (
        select(tables.job_streams.c.num_deltas)
        .where(tables.job_streams.c.job_id == tables.jobs.c.id)
        .scalar_subquery()
        .label("num_deltas")
    )
    versions = model_tables.model_versions.c
    model_digest = (
        select(versions.digest)
        .where(versions.model == tables.jobs.c.model, versions.version == tables.jobs.c.model_version)
        .scalar_subquery()
        .label("model_digest")
    )
    columns = [_SHORT_OUTPUT if without_bulk and column.name == "output" else column for column in _COLUMNS]
    return select(*columns, num_deltas, model_digest)


def job_of(row: RowMapping, seal: Seal) -> Job:
    """Return the job of a row of ``select_jobs``. Raises CannotOpen."""
    return Job(**{**open_job(seal, row), "state": JobState(row["state"]), "num_deltas": row["num_deltas"] or 0})

"""A job's row as a value, and the statement that reads it. Callers use it through ``store.jobs.jobs``.

Also the end of a job as a value and as a row, and ``EndPart``: what a feature writes in the transaction in which a
worker ends jobs.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Protocol

from sqlalchemy import Connection, RowMapping, Select, Text, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from headrace.assembly import parts
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.acceptance import AcceptedTimes, NewJob
from headrace.store.json_text import dump_json
from headrace.store.payloads.job_payload import CLASS_NAMES, ServiceClass
from headrace.store.schema import model_tables, tables
from headrace.store.schema.job_states import JobState
from headrace.store.seal import Seal, SealContext, open_columns, open_job, seal_columns, seal_job
from headrace.store.streams.checkpoints import (
    Lineage,
    Logprobs,
    Marks,
    deltas_as_json,
    deltas_from_json,
    groups_as_json,
    lineage_from_json,
    read_groups,
)
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
    start_after: datetime | None = None

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


class EndRows(Protocol):
    """Rows that a feature stores in the transaction that ends a job."""

    def write(self, connection: Connection, seal: Seal) -> None:
        """Store them. Must not wait for a row that a request of a caller may hold for long."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of an attempt: a terminal ``state``, the output, and the deltas of the whole text in order.

    ``lineage``: the attempts that the deltas came from; empty if all are from this attempt. ``logprobs``: one group for
    each delta; empty if the job does not ask for them. ``marks``: as in ``store.streams.checkpoints``. ``tenant_id``:
    the claim's, for encryption. ``is_source``: jobs of the response cache may wait for this answer. ``parent_id``: the
    flow of a step. ``added``: what it adds to the flow, if it has succeeded. ``stored``: what a feature stores with the
    end of the job.
    """

    job_id: str
    epoch: int
    state: JobState
    output: dict[str, Any] | None
    error: dict[str, Any] | None
    usage: dict[str, Any] | None
    deltas: Sequence[str] = field(default=())
    lineage: Lineage = ()
    logprobs: tuple[Logprobs, ...] = ()
    tenant_id: str = ""
    marks: Marks = ()
    is_source: bool = False
    parent_id: str | None = None
    added: Any = None
    stored: EndRows | None = None

    def __post_init__(self) -> None:
        if not self.state.is_terminal:
            raise ValueError(f"a job cannot finish as {self.state}")


def row_of(finish: Finish, seal: Seal) -> dict[str, object]:
    """Return the row of a statement of ``store.jobs.claim_queries`` that ends jobs, with its contents encrypted."""
    contents = {
        "output": finish.output,
        "error": finish.error,
        "deltas": deltas_as_json(finish.deltas, finish.marks),
        "logprobs": groups_as_json(finish.logprobs),
    }
    if seal.is_on:
        contents = _sealed(seal, finish, contents)
    return {
        **contents,
        "id": finish.job_id,
        "epoch": finish.epoch,
        "state": finish.state,
        "usage": finish.usage,
        "num_deltas": len(finish.deltas),
        "lineage": [list(link) for link in finish.lineage or (((finish.epoch, 0),) if finish.deltas else ())],
    }


def _sealed(seal: Seal, finish: Finish, contents: dict[str, Any]) -> dict[str, Any]:
    contents = {name: _storable(value) for name, value in contents.items()}
    stream = SealContext(finish.tenant_id, "job_streams", "", finish.job_id)
    return {
        **seal_job(seal, finish.tenant_id, finish.job_id, contents),
        **seal_columns(seal, stream, {"deltas": contents["deltas"], "logprobs": contents["logprobs"]}),
    }


def opened(row: RowMapping, seal: Seal) -> Finish:
    """Return the end of a job from its row and its stream, as it was written. Raises CannotOpen."""
    tenant_id, job_id = row["tenant_id"], row["id"]
    place = SealContext(tenant_id, "job_streams", "", job_id)
    job = open_columns(seal, SealContext(tenant_id, "jobs", "", job_id), row, "output", "error")
    stream = row if row["deltas"] is None else open_columns(seal, place, row, "deltas", "logprobs")
    deltas, marks = deltas_from_json(stream["deltas"] or ())
    return Finish(
        job_id=job_id,
        epoch=row["epoch"],
        state=JobState(row["state"]),
        output=job["output"],
        error=job["error"],
        usage=row["usage"],
        deltas=deltas,
        lineage=lineage_from_json(row["lineage"] or ()),
        logprobs=read_groups(stream["logprobs"]),
        tenant_id=tenant_id,
        marks=marks,
    )


def encode(rows: list[dict[str, object]]) -> str:
    """Encode a model's output. Characters that jsonb cannot hold are replaced, because the job must end anyway."""
    try:
        return dump_json(rows)
    except InvalidRequest:
        return dump_json(_storable(rows))


def _storable(value: object) -> object:
    """Replace U+0000 by U+FFFD and half surrogate pairs by ``?``."""
    match value:
        case str():
            return value.replace("\0", "\ufffd").encode(errors="replace").decode()
        case dict():
            return {_storable(key): _storable(item) for key, item in value.items()}
        case list() | tuple():
            return [_storable(item) for item in value]
        case _:
            return value


@dataclass(frozen=True, slots=True)
class EndPart:
    """The ``PART`` of a feature's file ``ended``.

    ``mark``: the field of ``Finish`` that is true for an end which concerns the feature. ``write``: gets those ends
    that have ended their jobs; it must not wait for a row that another transaction may hold.
    """

    mark: str
    write: Callable[[Connection, Sequence[Finish], Seal], None]

    def concerns(self, finish: Finish) -> bool:
        """Return True if the feature has something to write for this end."""
        return bool(getattr(finish, self.mark))


@cache
def end_parts() -> list[EndPart]:
    """Return the parts of all features."""
    return parts("ended", EndPart)

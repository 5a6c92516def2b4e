"""The end of a job as a value, and as a row of the statements that end jobs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection, RowMapping

from headrace.store.errors import InvalidRequest
from headrace.store.json_text import dump_json
from headrace.store.schema.job_states import JobState
from headrace.store.seal import Seal, SealContext, open_columns, seal_columns, seal_job
from headrace.store.streams.checkpoints import Lineage, Logprobs, groups_as_json, lineage_from_json, read_groups
from headrace.store.streams.choices import Marks, deltas_as_json, deltas_from_json


class EndRows(Protocol):
    """Rows that a feature stores in the transaction that ends a job."""

    def write(self, connection: Connection, seal: Seal) -> None:
        """Store them. Must not wait for a row that a request of a caller may hold for long."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of an attempt: a terminal ``state``, the output, and the deltas of the whole text in order.

    ``lineage``: the attempts that the deltas came from; empty if all are from this attempt. ``logprobs``: one group for
    each delta; empty if the job does not ask for them. ``marks``: as in ``store.streams.choices``. ``tenant_id``: the
    claim's, for encryption. ``is_source``: jobs of the response cache may wait for this answer. ``parent_id``: the flow
    of a step. ``added``: what it adds to the flow, if it has succeeded. ``stored``: what a feature stores
    with the end of the job.
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

"""Anthropic's message batches, built from batches and the lines of their result files. No I/O.

a batch          a message batch      a line of the results     a result
cancelling       canceling            an answer                 succeeded, with the message
ended, however   ended                an error of the route     errored, with the error
any other        in_progress          no answer in time         canceled, expired
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from headrace.features.anthropic.errors import error_object
from headrace.features.batches.batch_results import BATCH_CANCELLED, OK
from headrace.features.batches.batches import Batch
from headrace.store.payloads.strict_model import Body
from headrace.store.schema.batch_states import BatchStatus

_PREFIX, _OWN_PREFIX = "msgbatch_", "batch_"


class MessageBatchItem(Body):
    """One request of a message batch."""

    custom_id: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] = Field(
        description="your name of the request, once in the batch: 1 to 64 letters, digits, `_` and `-`"
    )
    params: dict[str, Any] = Field(description="the body of `POST /v1/messages`, without `stream`")


class MessageBatchRequest(Body):
    """The body of `POST /v1/messages/batches`."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "requests": [
                        {
                            "custom_id": "first",
                            "params": {
                                "model": "smollm2",
                                "max_tokens": 32,
                                "messages": [{"role": "user", "content": "Name a river."}],
                            },
                        }
                    ]
                }
            ]
        },
    )

    requests: Annotated[tuple[MessageBatchItem, ...], Field(min_length=1)] = Field(
        description="the requests; all of them together are at most one body"
    )


class MessageBatchCounts(BaseModel):
    """The requests by their state. All of them are processing until the batch has ended."""

    processing: int = Field(description="not ended yet")
    succeeded: int = Field(description="answered")
    errored: int = Field(description="refused, or failed")
    canceled: int = Field(description="cancelled before they were answered")
    expired: int = Field(description="not answered in time")


class MessageBatch(BaseModel):
    """A message batch. Times are RFC 3339, null until the event happens."""

    id: str
    type: Literal["message_batch"] = "message_batch"
    processing_status: Literal["in_progress", "canceling", "ended"] = Field(description="whether it has ended")
    request_counts: MessageBatchCounts
    created_at: str = Field(description="creation time")
    expires_at: str = Field(description="when its window ends")
    ended_at: str | None = Field(description="when it ended")
    cancel_initiated_at: str | None = Field(description="when cancellation was requested")
    archived_at: None = Field(None, description="always null")
    results_url: str | None = Field(description="the address of the results; null until the batch has ended")


class MessageBatchList(BaseModel):
    """A page of message batches, newest first."""

    data: list[MessageBatch]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedMessageBatch(BaseModel):
    """The deleted message batch."""

    id: str
    type: Literal["message_batch_deleted"] = "message_batch_deleted"


def message_batch_id(batch_id: str) -> str:
    """Return the id that Anthropic's routes show."""
    return _PREFIX + batch_id.removeprefix(_OWN_PREFIX)


def own_id(message_batch_id: str) -> str:
    """Return the batch's own id."""
    is_ours = message_batch_id.startswith(_PREFIX)
    return _OWN_PREFIX + message_batch_id.removeprefix(_PREFIX) if is_ours else message_batch_id


def message_batch(batch: Batch, num_requests: int, outcomes: Mapping[str, int], base_url: str) -> MessageBatch:
    """Return the message batch.

    ``outcomes``: its lines by their outcome in the database. ``base_url``: the server's address, without a last slash.
    """
    batch_id = message_batch_id(batch.id)
    has_ended = batch.status.is_terminal
    status: Literal["in_progress", "canceling", "ended"] = "ended" if has_ended else "in_progress"
    if batch.status is BatchStatus.CANCELLING:
        status = "canceling"
    ended_at = batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at
    return MessageBatch(
        id=batch_id,
        processing_status=status,
        request_counts=_ended_counts(batch, num_requests, outcomes) if has_ended else _counts(processing=num_requests),
        created_at=_rfc3339(batch.created_at),
        expires_at=_rfc3339(batch.expires_at),
        ended_at=None if ended_at is None else _rfc3339(ended_at),
        cancel_initiated_at=None if batch.cancelling_at is None else _rfc3339(batch.cancelling_at),
        results_url=f"{base_url}/v1/messages/batches/{batch_id}/results" if has_ended else None,
    )


def _counts(**given: int) -> MessageBatchCounts:
    return MessageBatchCounts(**{**dict.fromkeys(MessageBatchCounts.model_fields, 0), **given})


def _ended_counts(batch: Batch, num_requests: int, outcomes: Mapping[str, int]) -> MessageBatchCounts:
    """Return the counts of an ended batch, as its results have them."""
    succeeded = batch.num_completed
    errored = outcomes.get("failed", 0) + outcomes.get("refused", 0)
    if batch.status is BatchStatus.CANCELLED:
        return _counts(succeeded=succeeded, errored=errored, canceled=num_requests - succeeded - errored)
    canceled, expired = outcomes.get("cancelled", 0), outcomes.get("expired", 0)
    if batch.status is BatchStatus.EXPIRED:
        expired = num_requests - succeeded - errored - canceled
    return _counts(
        succeeded=succeeded, errored=num_requests - succeeded - canceled - expired, canceled=canceled, expired=expired
    )


def message_batch_list(found: Sequence[MessageBatch], *, has_more: bool) -> MessageBatchList:
    """Return a page."""
    return MessageBatchList(
        data=list(found),
        has_more=has_more,
        first_id=found[0].id if found else None,
        last_id=found[-1].id if found else None,
    )


def message_result(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the results for a line of a batch's output or error file."""
    return {"custom_id": line["custom_id"], "result": _result(line)}


def _result(line: Mapping[str, Any]) -> dict[str, Any]:
    response = line["response"]
    if response is None:
        return {"type": "canceled" if line["error"]["code"] == BATCH_CANCELLED else "expired"}
    if response["status_code"] == OK:
        return {"type": "succeeded", "message": response["body"]}
    error = error_object(response["status_code"], response["body"]["error"], response["request_id"])
    return {"type": "errored", "error": error}


def _rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")

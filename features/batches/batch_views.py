"""Response models of OpenAI's batches."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from headrace.features.batches.batches import Batch
from headrace.features.files.file_views import file_page
from headrace.producer_api.http.views import seconds
from headrace.store.schema.batch_states import BatchStatus


class BatchError(BaseModel):
    """An error in a line of the input; `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(BaseModel):
    """Why a batch failed validation: the first hundred errors."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """Progress of a batch. At the end `completed` lines are in the output file, `failed` lines in the error file."""

    total: int
    completed: int
    failed: int


class BatchInputDetails(BaseModel):
    """Parts of the input tokens."""

    cached_tokens: int = Field(description="found in a prefix cache")


class BatchOutputDetails(BaseModel):
    """Parts of the output tokens."""

    reasoning_tokens: int = Field(description="of reasoning before the answer")


class BatchTokens(BaseModel):
    """The tokens of the lines that have ended."""

    input_tokens: int
    input_tokens_details: BatchInputDetails = Field(description="parts of the input tokens")
    output_tokens: int
    output_tokens_details: BatchOutputDetails = Field(description="parts of the output tokens")
    total_tokens: int


class BatchObject(BaseModel):
    """A batch. Times are Unix seconds, null until the event happens."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    model_versions: dict[str, str] | None = Field(
        description="the version of each model string of the lines, as `name@3`; null before the batch is in progress"
    )
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    start_after: int | None = Field(None, description="no line runs before; null: it need not wait")
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchTokens
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """A page of batches, newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def batch_object(batch: Batch) -> BatchObject:
    """Return the batch."""
    tokens_in, tokens_out = batch.input_tokens, batch.output_tokens
    errors = None if batch.errors is None else BatchErrors(data=[BatchError(**error) for error in batch.errors])
    return BatchObject(
        id=batch.id,
        endpoint=batch.url,
        model=batch.model,
        model_versions=batch.model_versions,
        errors=errors,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=int(batch.created_at.timestamp()),
        start_after=seconds(batch.start_after),
        in_progress_at=seconds(batch.in_progress_at),
        expires_at=int(batch.expires_at.timestamp()),
        finalizing_at=seconds(batch.finalizing_at),
        completed_at=seconds(batch.completed_at),
        failed_at=seconds(batch.failed_at),
        expired_at=seconds(batch.expired_at),
        cancelling_at=seconds(batch.cancelling_at),
        cancelled_at=seconds(batch.cancelled_at),
        request_counts=RequestCounts(total=batch.num_total, completed=batch.num_completed, failed=batch.num_failed),
        usage=BatchTokens(
            input_tokens=tokens_in,
            input_tokens_details=BatchInputDetails(cached_tokens=batch.cached_tokens),
            output_tokens=tokens_out,
            output_tokens_details=BatchOutputDetails(reasoning_tokens=batch.reasoning_tokens),
            total_tokens=tokens_in + tokens_out,
        ),
        metadata=batch.metadata,
    )


def batch_list(found: Sequence[Batch], limit: int) -> BatchList:
    """Return a page of batches, where ``found`` has up to ``limit + 1`` entries."""
    return BatchList(**file_page([batch_object(batch) for batch in found], limit))

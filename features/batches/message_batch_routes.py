"""Routes of Anthropic's message batches: one more face of ``batches``. The requests become an input file."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated

import orjson
from fastapi import APIRouter, Path, Query
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.responses import Response, StreamingResponse

from headrace.features.anthropic.message_views import DOCUMENTED_ERRORS
from headrace.features.batches import batches
from headrace.features.batches.batch_routes import BatchRequest, KeeperOf, new_batch, store_batch
from headrace.features.batches.batch_validation import MESSAGES_URL
from headrace.features.batches.batches import Batch
from headrace.features.batches.message_batch_views import (
    DeletedMessageBatch,
    MessageBatch,
    MessageBatchItem,
    MessageBatchList,
    MessageBatchRequest,
    message_batch,
    message_batch_list,
    message_result,
    own_id,
)
from headrace.features.files import files
from headrace.features.files.blob_storage import Blobs, open_blobs
from headrace.features.files.files import File, Purpose
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import BaseUrlOf, OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.submission.draft_job import Origin
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.tenants.api_keys import Principal

router = APIRouter(
    prefix="/v1/messages/batches", tags=["anthropic"], route_class=StrictJsonRoute, responses=DOCUMENTED_ERRORS
)

MessageBatchId = Annotated[
    str, Path(description="the message batch", examples=["msgbatch_0197f0c2a3b47d518e9a2b6c7d8e9f01"])
]

_WINDOW = "24h"
_FILENAME = "message_batch.jsonl"


@router.post("", response_model=MessageBatch, summary="Create a message batch")
async def create_message_batch(
    runtime: RuntimeOf,
    keeper: KeeperOf,
    principal: JobsWriter,
    body: MessageBatchRequest,
    origin: OriginOf,
    base_url: BaseUrlOf,
) -> Response:
    """Run each request within 24 hours, at lower priority than interactive requests.

    A request that is refused is an error in the results, and does not stop the others.
    """
    _check_names(body.requests)
    batch = await run_in_threadpool(_create, runtime, principal, body, origin)
    keeper.wake()
    return JsonResponse(message_batch(batch, len(body.requests), {}, base_url))


def _check_names(requests: Sequence[MessageBatchItem]) -> None:
    name, number = Counter(request.custom_id for request in requests).most_common(1)[0]
    if number > 1:
        raise InvalidRequest(f"{number} requests have the `custom_id` {name}: each needs its own", param="requests")


def _create(runtime: Runtime, principal: Principal, body: MessageBatchRequest, origin: Origin) -> Batch:
    """Store the requests as a file, and the batch of it. An earlier request's batch needs no second file."""
    made: list[File] = []

    def input_file() -> File:
        made.append(_store_file(runtime, principal.tenant_id, body.requests))
        return made[0]

    asked = BatchRequest(input_file_id="", endpoint=MESSAGES_URL, completion_window=_WINDOW)
    new = new_batch(asked, origin, principal.key_id, runtime.digests.fingerprints(origin.fingerprint))
    used = None
    try:
        batch = store_batch(runtime, principal, new, input_file, is_retry=origin.is_retry)
        used = batch.input_file_id
    finally:
        for file in made:
            if file.id != used:
                files.delete(runtime.db, principal.tenant_id, file.id, actor=principal.key_id)
    return batch


def _blobs(runtime: Runtime) -> Blobs:
    return open_blobs(runtime.settings, runtime.db.seal)


def _store_file(runtime: Runtime, tenant_id: str, requests: Sequence[MessageBatchItem]) -> File:
    draft = _blobs(runtime).create()
    try:
        for request in requests:
            line = {"custom_id": request.custom_id, "method": "POST", "url": MESSAGES_URL, "body": request.params}
            draft.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        most_bytes = runtime.settings.tenant_stored_bytes
        return files.create(
            runtime.db, tenant_id, draft, filename=_FILENAME, purpose=Purpose.BATCH, most_bytes=most_bytes, ttl_s=None
        )
    finally:
        draft.drop()


@router.get("", response_model=MessageBatchList, summary="List message batches")
async def list_message_batches(
    runtime: RuntimeOf,
    principal: JobsReader,
    base_url: BaseUrlOf,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after_id: Annotated[str | None, Query(description="the page after this batch")] = None,
    before_id: Annotated[str | None, Query(description="the page before this batch")] = None,
) -> Response:
    """Return the tenant's message batches, newest first."""
    after, before = (None if each is None else own_id(each) for each in (after_id, before_id))

    def read(db: Database) -> MessageBatchList:
        found = batches.list_batches(
            db, principal.tenant_id, limit=limit + 1, after=after, before=before, url=MESSAGES_URL
        )
        page = found[:limit] if before is None else found[-limit:]
        return message_batch_list(_shown(runtime, db, principal.tenant_id, page, base_url), has_more=len(found) > limit)

    return JsonResponse(await runtime.lists.read(principal, read))


@router.get("/{message_batch_id}", response_model=MessageBatch, summary="Retrieve a message batch")
async def get_message_batch(
    runtime: RuntimeOf, principal: JobsReader, message_batch_id: MessageBatchId, base_url: BaseUrlOf
) -> Response:
    """Return the message batch."""
    return JsonResponse(await run_in_threadpool(_read, runtime, principal.tenant_id, message_batch_id, base_url))


@router.post("/{message_batch_id}/cancel", response_model=MessageBatch, summary="Cancel a message batch")
async def cancel_message_batch(
    runtime: RuntimeOf,
    keeper: KeeperOf,
    principal: JobsWriter,
    message_batch_id: MessageBatchId,
    base_url: BaseUrlOf,
) -> Response:
    """Cancel the remaining requests. The results have what was answered before."""
    found = await run_in_threadpool(_find, runtime, principal.tenant_id, message_batch_id)
    await run_in_threadpool(batches.request_cancel, runtime.db, principal.tenant_id, found.id)
    keeper.wake()
    return JsonResponse(await run_in_threadpool(_read, runtime, principal.tenant_id, message_batch_id, base_url))


@router.delete("/{message_batch_id}", response_model=DeletedMessageBatch, summary="Delete a message batch")
async def delete_message_batch(runtime: RuntimeOf, principal: JobsWriter, message_batch_id: MessageBatchId) -> Response:
    """Delete an ended batch with its files, and soon the contents of its jobs. The jobs' rows stay for the usage."""
    found = await run_in_threadpool(_find, runtime, principal.tenant_id, message_batch_id)
    await run_in_threadpool(batches.delete, runtime.db, principal.tenant_id, found.id, actor=principal.key_id)
    return JsonResponse(DeletedMessageBatch(id=message_batch_id))


@router.get(
    "/{message_batch_id}/results",
    response_class=Response,
    responses={200: {"description": "A result for each request, a line each", "content": {"application/x-jsonl": {}}}},
    summary="Read the results of a message batch",
)
async def read_message_batch_results(
    runtime: RuntimeOf, principal: JobsReader, message_batch_id: MessageBatchId
) -> Response:
    """Return a line for each request: `custom_id`, and `result` with its type. Answers stand before errors."""
    batch = await run_in_threadpool(_find, runtime, principal.tenant_id, message_batch_id)
    if not batch.status.is_terminal:
        raise InvalidRequest("the batch has not ended, and has no results until then: ask again later")
    lines = _results(runtime, batch)
    # Read the first line before sending headers, so that a missing file is an error, not an empty result.
    first = await run_in_threadpool(next, lines, b"")

    async def content() -> AsyncIterator[bytes]:
        yield first
        async for line in iterate_in_threadpool(lines):
            yield line

    return StreamingResponse(content(), media_type="application/x-jsonl")


def _results(runtime: Runtime, batch: Batch) -> Iterator[bytes]:
    ids = [each for each in (batch.output_file_id, batch.error_file_id) if each is not None]
    for file in [files.get(runtime.db, batch.tenant_id, each) for each in ids]:
        with _blobs(runtime).open(file.digest) as written:
            for line in iter(written.readline, b""):
                yield orjson.dumps(message_result(orjson.loads(line)), option=orjson.OPT_APPEND_NEWLINE)


def _find(runtime: Runtime, tenant_id: str, message_batch_id: str) -> Batch:
    """Return the batch. Raises NotFound, also for a batch of another route and for a deleted one."""
    batch = batches.get(runtime.db, tenant_id, own_id(message_batch_id))
    if batch.url != MESSAGES_URL or batch.purged_at is not None:
        raise NotFound(f"no message batch {message_batch_id[:80]}")
    return batch


def _read(runtime: Runtime, tenant_id: str, message_batch_id: str, base_url: str) -> MessageBatch:
    return _shown(runtime, runtime.db, tenant_id, [_find(runtime, tenant_id, message_batch_id)], base_url)[0]


def _shown(runtime: Runtime, db: Database, tenant_id: str, found: Sequence[Batch], base_url: str) -> list[MessageBatch]:
    outcomes = batches.count_outcomes(db, tenant_id, [batch.id for batch in found])
    return [message_batch(batch, _num_requests(runtime, batch), outcomes[batch.id], base_url) for batch in found]


def _num_requests(runtime: Runtime, batch: Batch) -> int:
    """Return the number of requests, which the batch itself knows once its input was read."""
    if batch.num_total or batch.input_digest is None:
        return batch.num_total
    with _blobs(runtime).open(batch.input_digest) as content:
        return sum(not line.isspace() for line in iter(content.readline, b""))

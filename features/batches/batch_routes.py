"""Routes of OpenAI's batches: create, retrieve, list, cancel."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Path, Query
from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.batches import batches
from headrace.features.batches.batch_keeper import BatchKeeper, keeper_for
from headrace.features.batches.batch_results import Position, read_ended
from headrace.features.batches.batch_retry import write_missing
from headrace.features.batches.batch_views import BatchList, BatchObject, batch_list, batch_object
from headrace.features.batches.batches import Batch, NewBatch
from headrace.features.cheap_hours.hours import read_hours
from headrace.features.files import files
from headrace.features.files.blob_storage import Blobs
from headrace.features.files.file_routes import check_life_s
from headrace.features.files.file_work import BlobsOf
from headrace.features.files.files import File, Purpose
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.submission.draft_job import Origin
from headrace.producer_api.submission.enqueue import MAX_KEY_CHARS
from headrace.producer_api.submission.submit import RETRY_WITHIN_S
from headrace.producer_api.tasks.registry import parser_of
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import CHEAP, MetadataKey, MetadataValue, StartAfter, later_time
from headrace.store.payloads.strict_model import Body
from headrace.store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=StrictJsonRoute, responses=DOCUMENTED)

BatchId = Annotated[str, Path(examples=["batch_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]

_WINDOW = re.compile(r"(\d{1,3})([hd])")
_SECONDS = {"h": 3600, "d": 86_400}
SHORTEST_S, LONGEST_S = 3600, 7 * 86_400


class ExpiresAfter(Body):
    """When a file that the batch creates is deleted."""

    anchor: str
    seconds: int


class BatchRequest(Body):
    """The body of `POST /v1/batches`."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "input_file_id": "file_0197f0c2a3b47d518e9a2b6c7d8e9f01",
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "24h",
                    "metadata": {"order": "42"},
                }
            ]
        },
    )

    input_file_id: str
    endpoint: str
    completion_window: str = Field(description="`1h` to `168h`, or `1d` to `7d`")
    start_after: StartAfter | None = Field(
        None,
        description="Unix seconds before which no line runs, at most 366 days ahead; the window begins then. `cheap`:"
        " the operator's cheap hours, and the window begins now",
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    output_expires_after: ExpiresAfter | None = None


async def _batch_keeper(request: Request) -> BatchKeeper:
    keeper: BatchKeeper = request.app.state.works[keeper_for]
    return keeper


KeeperOf = Annotated[BatchKeeper, Depends(_batch_keeper)]


@router.post("", response_model=BatchObject, summary="Create a batch")
async def create_batch(
    runtime: RuntimeOf, keeper: KeeperOf, principal: JobsWriter, body: BatchRequest, origin: OriginOf
) -> Response:
    """Run each line of an uploaded file within the completion window, at lower priority than interactive requests."""
    fingerprints = runtime.digests.fingerprints(origin.fingerprint)
    new = new_batch(body, origin, principal.key_id, fingerprints, cheap_hours=runtime.settings.cheap_hours)

    def input_file() -> File:
        file = files.get(runtime.db, principal.tenant_id, body.input_file_id)
        if file.purpose is not Purpose.BATCH:
            raise InvalidRequest(
                f"`input_file_id` is a file for {file.purpose}: upload it with the purpose batch", param="input_file_id"
            )
        return file

    batch = await run_in_threadpool(store_batch, runtime, principal, new, input_file, is_retry=origin.is_retry)
    keeper.wake()
    return JsonResponse(batch_object(batch))


def store_batch(
    runtime: Runtime, principal: Principal, new: NewBatch, input_file: Callable[[], File], *, is_retry: bool
) -> Batch:
    """Store the batch of an input file, or return the one that an earlier request has made. Blocks."""
    tenant_id = principal.tenant_id
    if is_retry and new.idempotency_key is None:
        found = batches.find_duplicate(runtime.db, tenant_id, new.fingerprints, RETRY_WITHIN_S)
        if found is not None:
            return found
    file = input_file()
    new = replace(_apply_policy(runtime, tenant_id, new, file.id), limits=runtime.rate_limits.held_by(principal))
    return batches.create(runtime.db, tenant_id, new, file)


def _apply_policy(runtime: Runtime, tenant_id: str, new: NewBatch, file_id: str) -> NewBatch:
    """Apply the tenant's policy for all models to the metadata: replace or refuse text that must not be stored."""
    found = runtime.guards.in_force(tenant_id)
    if found is None:
        return new
    metadata = None if new.metadata is None else found.fields({"metadata": new.metadata}, "metadata")["metadata"]
    digests, key, project_id = runtime.digests, new.idempotency_key, new.project_id
    if key is not None:
        key = found.key(key, lambda one: batches.is_known(runtime.db, tenant_id, one))
    if project_id is not None:
        project_id = found.name(project_id, "OpenAI-Project")
    fingerprints = new.fingerprints
    if metadata != new.metadata and not digests.is_keyed:
        # A plain digest of the original request would make the removed text guessable.
        stored = [new.api_key_id, file_id, new.url, new.completion_window, metadata, new.output_ttl_s]
        fingerprints = digests.fingerprints(orjson.dumps(stored, option=orjson.OPT_SORT_KEYS).hex())[:1]
    return replace(new, metadata=metadata, idempotency_key=key, project_id=project_id, fingerprints=fingerprints)


def new_batch(
    body: BatchRequest,
    origin: Origin,
    api_key_id: str,
    fingerprints: Sequence[str],
    *,
    cheap_hours: tuple[str, ...] = (),
) -> NewBatch:
    """Validate the request; raise InvalidRequest that names the field."""
    parser_of(body.endpoint, "endpoint")
    key = origin.idempotency_key
    if key is not None and not 0 < len(key) <= MAX_KEY_CHARS:
        raise InvalidRequest(f"an Idempotency-Key has 1 to {MAX_KEY_CHARS} characters", param="Idempotency-Key")
    start_after, window_s = _start(body, cheap_hours)
    expires = body.output_expires_after
    life: dict[str, Any] = {"anchor": None, "seconds": None} if expires is None else expires.model_dump()
    return NewBatch(
        url=body.endpoint,
        completion_window=body.completion_window,
        window_s=window_s,
        metadata=body.metadata,
        output_ttl_s=None
        if expires is None
        else int(check_life_s(life["anchor"], life["seconds"], "output_expires_after")),
        fingerprints=fingerprints,
        idempotency_key=key,
        api_key_id=api_key_id,
        project_id=origin.project_id,
        start_after=start_after,
        traceparent=None if origin.trace is None else origin.trace.header,
    )


def _start(body: BatchRequest, cheap_hours: tuple[str, ...]) -> tuple[datetime | None, float]:
    """Return when the batch starts, None if at once, and the seconds that its window has from then."""
    window_s = float(_window_s(body.completion_window))
    if body.start_after != CHEAP:
        return None if body.start_after is None else later_time(body.start_after), window_s
    now = datetime.now(UTC)
    start = read_hours(cheap_hours).start(now, window_s)
    return start, window_s if start is None else window_s - (start - now).total_seconds()


def _window_s(window: str) -> int:
    found = _WINDOW.fullmatch(window)
    window_s = 0 if found is None else int(found[1]) * _SECONDS[found[2]]
    if not SHORTEST_S <= window_s <= LONGEST_S:
        raise InvalidRequest(
            "`completion_window` must be from 1h to 168h, or from 1d to 7d, for example 24h", param="completion_window"
        )
    return window_s


@router.get("", response_model=BatchList, summary="List batches")
async def list_batches(
    runtime: RuntimeOf,
    principal: JobsReader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
) -> Response:
    """Return the tenant's batches, newest first."""

    def read(db: Database) -> BatchList:
        return batch_list(batches.list_batches(db, principal.tenant_id, limit=limit + 1, after=after), limit)

    return JsonResponse(await runtime.lists.read(principal, read))


@router.get("/{batch_id}", response_model=BatchObject, summary="Retrieve a batch")
async def get_batch(runtime: RuntimeOf, principal: JobsReader, batch_id: BatchId) -> Response:
    """Return the batch. Its counts can lag by about a second."""
    return JsonResponse(batch_object(await run_in_threadpool(batches.get, runtime.db, principal.tenant_id, batch_id)))


@router.get(
    "/{batch_id}/results",
    response_class=Response,
    responses={200: {"description": "Lines as in the output and error files", "content": {"application/x-jsonl": {}}}},
    summary="Read results of a running batch",
)
async def read_results(
    runtime: RuntimeOf,
    blobs: BlobsOf,
    principal: JobsReader,
    batch_id: BatchId,
    after: Annotated[
        str, Query(pattern=r"^\d{1,10}\.\d{1,15}$", description="`Headrace-Next` of the previous answer")
    ] = "1.0",
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> Response:
    """Return results in the order of the input, up to the first line that has not ended; later as in the batch's files.

    The header `Headrace-Next` is where to go on: the same as `after` while there is nothing new.
    """
    line, _, offset = after.partition(".")
    position = Position(max(1, int(line)), int(offset))

    def read() -> tuple[list[bytes], Position]:
        batch = batches.get(runtime.db, principal.tenant_id, batch_id)
        return read_ended(runtime.db, blobs, runtime.settings, batch, position, limit)

    found, go_on = await run_in_threadpool(read)
    headers = {"Headrace-Next": f"{go_on.line}.{go_on.offset}"}
    return Response(b"".join(found), media_type="application/x-jsonl", headers=headers)


@router.post("/{batch_id}/cancel", response_model=BatchObject, summary="Cancel a batch")
async def cancel_batch(runtime: RuntimeOf, keeper: KeeperOf, principal: JobsWriter, batch_id: BatchId) -> Response:
    """Cancel the remaining lines. The finished lines are published as soon as no job of the batch is running."""
    batch = await run_in_threadpool(batches.request_cancel, runtime.db, principal.tenant_id, batch_id)
    keeper.wake()
    return JsonResponse(batch_object(batch))


@router.post("/{batch_id}/retry", response_model=BatchObject, summary="Run again what has no answer")
async def retry_batch(
    runtime: RuntimeOf, keeper: KeeperOf, blobs: BlobsOf, principal: JobsWriter, batch_id: BatchId, origin: OriginOf
) -> Response:
    """Create a batch of the lines of an ended one that have no answer, under their `custom_id`s.

    Their requests become its input file. Endpoint, window and metadata are those of the earlier batch.
    """
    batch = await run_in_threadpool(_retry, runtime, blobs, principal, batch_id, origin)
    keeper.wake()
    return JsonResponse(batch_object(batch))


def _retry(runtime: Runtime, blobs: Blobs, principal: Principal, batch_id: str, origin: Origin) -> Batch:
    earlier = batches.get(runtime.db, principal.tenant_id, batch_id)
    made: list[File] = []

    def input_file() -> File:
        draft = write_missing(runtime.db, blobs, runtime.settings, earlier)
        try:
            name, most_bytes = f"{earlier.id}_missing.jsonl", runtime.settings.tenant_stored_bytes
            made.append(
                files.create(
                    runtime.db,
                    principal.tenant_id,
                    draft,
                    filename=name,
                    purpose=Purpose.BATCH,
                    most_bytes=most_bytes,
                )
            )
        finally:
            draft.drop()
        return made[0]

    body = BatchRequest(
        input_file_id="",
        endpoint=earlier.url,
        completion_window=earlier.completion_window,
        metadata=earlier.metadata,
    )
    new = replace(
        new_batch(body, origin, principal.key_id, runtime.digests.fingerprints(origin.fingerprint)),
        output_ttl_s=earlier.output_ttl_s,
    )
    used = None
    try:
        batch = store_batch(runtime, principal, new, input_file, is_retry=origin.is_retry)
        used = batch.input_file_id
    finally:
        for file in made:
            if file.id != used:
                files.delete(runtime.db, principal.tenant_id, file.id, actor=principal.key_id)
    return batch

"""Routes of OpenAI's stored chat completions: those whose request had `store` true, once they have an answer."""

from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.openai import stored_chats
from headrace.features.openai.chat_views import DOCUMENTED_STORED_CHAT
from headrace.features.openai.stored_chat_views import (
    StoredChatChanges,
    StoredChatList,
    StoredMessageList,
    messages_of,
    page_of,
    stored_chat,
)
from headrace.features.openai.stored_chats import ChatFilter
from headrace.features.openai.text_routes import fingerprint_of
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.metadata_filters import metadata_filters
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import Deleted, JsonResponse, ObjectResponse
from headrace.producer_api.reads.job_loader import restored
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound, Unavailable
from headrace.store.jobs.jobs import Job
from headrace.store.streams import stream_log
from headrace.store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1/chat/completions", tags=["openai"], route_class=StrictJsonRoute, responses=DOCUMENTED)

CompletionId = Annotated[str, Path(examples=["chatcmpl-0197f0c2a3b47d518e9a2b6c7d8e9f01"])]
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]

_FILTERS = frozenset({"model", "after", "limit", "order"})
_LONGEST_VERSION = 9


@router.get("", response_model=StoredChatList, summary="List stored chat completions")
async def list_chats(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsReader,
    model: Annotated[str | None, Query(description="only of this model: `name`, `name@3` or `name@alias`")] = None,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
    limit: Limit = 20,
    order: Annotated[Order, Query(description="oldest first (asc) or newest first (desc)")] = "asc",
) -> Response:
    """Return the stored chat completions that have an answer. `metadata[key]=value` is also a filter."""
    metadata = metadata_filters(request, _FILTERS)

    def read(db: Database) -> list[Job]:
        wanted = _filter(runtime, model, metadata)
        if wanted is None:
            return []
        found = stored_chats.list_chats(
            db, principal.tenant_id, wanted, limit=limit + 1, after=after, descending=order == "desc"
        )
        return [*map(restored, found)]

    found = await runtime.lists.read(principal, read)
    return ObjectResponse(page_of([await _object(runtime, job) for job in found], limit))


def _filter(runtime: Runtime, model: str | None, metadata: dict[str, str]) -> ChatFilter | None:
    """Return the filter; None for an alias that means nothing."""
    if model is None:
        return ChatFilter(metadata=metadata)
    name, at, version = model.partition("@")
    if not at:
        return ChatFilter(name, None, metadata)
    if version.isascii() and version.isdecimal() and len(version) <= _LONGEST_VERSION:
        return ChatFilter(name, int(version), metadata)
    try:
        found = runtime.catalog.resolve(model)
    except NotFound:
        return None
    return ChatFilter(found.model, found.version, metadata)


async def _object(runtime: Runtime, job: Job) -> dict[str, Any]:
    return stored_chat(job, {"system_fingerprint": await fingerprint_of(runtime, job)})


@router.get(
    "/{completion_id}",
    response_class=Response,
    responses=DOCUMENTED_STORED_CHAT,
    summary="Retrieve a stored chat completion",
)
async def get_chat(runtime: RuntimeOf, principal: JobsReader, completion_id: CompletionId) -> Response:
    """Return a chat completion whose request had `store` true, as long as its job's contents are kept."""
    job = await _get(runtime, principal, completion_id)
    return ObjectResponse(await _object(runtime, job), headers=_headers(job))


@router.post(
    "/{completion_id}",
    response_class=Response,
    responses=DOCUMENTED_STORED_CHAT,
    summary="Update a stored chat completion",
)
async def update_chat(
    runtime: RuntimeOf, principal: JobsWriter, completion_id: CompletionId, body: StoredChatChanges
) -> Response:
    """Replace the metadata, also that of its job."""

    def update() -> None:
        job = stored_chats.get(runtime.db, principal.tenant_id, completion_id)
        metadata = dict(body.metadata or {})
        found = runtime.guards.in_force(principal.tenant_id, job.model)
        if found is not None:
            metadata = found.fields({"metadata": metadata}, "metadata")["metadata"]
        stored_chats.set_metadata(runtime.db, principal.tenant_id, completion_id, metadata)

    await run_in_threadpool(update)
    job = await _get(runtime, principal, completion_id)
    return ObjectResponse(await _object(runtime, job), headers=_headers(job))


@router.delete("/{completion_id}", response_model=Deleted, summary="Delete a stored chat completion")
async def delete_chat(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, completion_id: CompletionId
) -> Response:
    """Delete its input and output, as deleting its job does. The job's row is kept."""

    def delete() -> None:
        of_request = {"actor": principal.key_id, "request_id": request.state.request_id}
        stored_chats.delete(runtime.db, principal.tenant_id, completion_id, **of_request)
        # Without Redis, its copy expires some minutes after the last frame.
        with suppress(Unavailable):
            stream_log.forget(runtime.redis, [stored_chats.job_id_of(completion_id)])

    await run_in_threadpool(delete)
    return JsonResponse(Deleted(id=completion_id, object="chat.completion.deleted"))


@router.get(
    "/{completion_id}/messages", response_model=StoredMessageList, summary="List a stored chat completion's messages"
)
async def list_messages(
    runtime: RuntimeOf,
    principal: JobsReader,
    completion_id: CompletionId,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
    limit: Limit = 20,
    order: Annotated[Order, Query(description="oldest first (asc) or newest first (desc)")] = "asc",
) -> Response:
    """Return the messages of the request. The answer is not among them."""
    job = await _get(runtime, principal, completion_id)
    if "input" not in job.payload:
        raise stored_chats.gone(completion_id)
    messages = messages_of(job)
    if order == "desc":
        messages.reverse()
    ids = [message["id"] for message in messages]
    if after is not None and after not in ids:
        raise InvalidRequest(f"{after[:80]!r} is not a message of this chat completion", param="after")
    start = 0 if after is None else ids.index(after) + 1
    return ObjectResponse(page_of(messages[start : start + limit + 1], limit))


async def _get(runtime: Runtime, principal: Principal, completion_id: str) -> Job:
    job = await run_in_threadpool(stored_chats.get, runtime.db, principal.tenant_id, completion_id)
    return restored(job)


def _headers(job: Job) -> dict[str, str]:
    return {"X-Job-Id": job.id, "X-Model-Version": str(job.model_version)}

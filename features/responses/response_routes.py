"""OpenAI's Responses API: made, read, followed from any event on, cancelled and deleted; each is a job underneath."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.responses import stored_responses
from headrace.features.responses.field_names import as_sent
from headrace.features.responses.file_searches import RESULTS
from headrace.features.responses.mcp_items import with_turns
from headrace.features.responses.new_response import NewResponse
from headrace.features.responses.response_answer import response_object
from headrace.features.responses.response_jobs import cancel_response, prepare, read_found, read_response
from headrace.features.responses.response_request import Includable, PreparedResponse, ResponseRequest
from headrace.features.responses.response_stream import BEFORE_ALL, read_events
from headrace.features.responses.response_views import DOCUMENTED_RESPONSE, DOCUMENTED_RESPONSE_OR_EVENTS
from headrace.features.responses.stored_responses import StoredResponse
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import Deleted, JsonResponse, ObjectResponse
from headrace.producer_api.jobs.synchronous import ClientConnection
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.streaming.turns import has_turns
from headrace.producer_api.submission.draft_job import Origin, Receipt
from headrace.store.errors import Gone, HeadraceError, InvalidRequest, NotFound
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import Job
from headrace.store.jobs.responses import response_id

router = APIRouter(prefix="/v1/responses", tags=["openai"], route_class=StrictJsonRoute, responses=DOCUMENTED)


class _ResponseId(StringConvertor):
    """Any path segment but ``input_tokens``, so that GET on that route answers 405 instead of 404."""

    regex = "(?!input_tokens$)[^/]+"


register_url_convertor("response_id", _ResponseId())

ResponseId = Annotated[str, Path(examples=["resp_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]
Include = Annotated[
    list[Includable] | None,
    Query(alias="include[]", description="`file_search_call.results`: what a search in files found"),
]


class InputItems(BaseModel):
    """A page of a response's input items; the next page is ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(BaseModel):
    """Number of input tokens for the model."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


@router.post("", response_class=Response, responses=DOCUMENTED_RESPONSE_OR_EVENTS, summary="Create a response")
async def create_response(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: ResponseRequest, origin: OriginOf
) -> Response:
    """Store a job for the request. Answer when it has ended, stream its events, or answer at once with `background`.

    If the client disconnects before the end, the job is cancelled, unless it runs in the background or
    `job.on_disconnect` is `continue`.
    """
    tenant_id = principal.tenant_id
    if body.stream or not body.background:
        await runtime.streams.enter(request)
    receipt, new = await _accepted(runtime, principal, body, origin)
    job = receipt.job or await runtime.reader.get(tenant_id, receipt.job_id)
    if new is None:
        row = await run_in_threadpool(stored_responses.get, runtime.db, tenant_id, job.id, unstored=True)
    else:
        row = StoredResponse.of(job.id, new)
    connection = ClientConnection(runtime, job, is_kept=body.is_kept)
    headers = receipt.headers | _headers(job)
    is_shown = RESULTS in (body.include or ())
    if body.stream:
        return connection.stream(read_events(runtime, job, row, with_found=is_shown), headers)
    if row.is_background:
        return ObjectResponse(response_object(job, row), headers=headers)
    ended = await connection.wait(request)
    if ended is None:
        return Response()  # the client is gone
    answer_of(ended)
    return ObjectResponse(response_object(ended, await _whole(runtime, ended, row, is_shown)), headers=headers)


async def _accepted(
    runtime: Runtime, principal: JobsWriter, body: ResponseRequest, origin: Origin
) -> tuple[Receipt, NewResponse | None]:
    """Store the job and return it with its response, or a job of before without one."""
    try:
        prepared = await _prepared(runtime, principal.tenant_id, body)
    except (NotFound, Gone):
        # What the request names may be gone since its key was accepted: the key still has its job.
        found = await run_in_threadpool(_repeated, runtime, principal.tenant_id, origin)
        if found is None:
            raise
        return Receipt(found, True, {"Idempotent-Replayed": "true"}), None
    receipt = await _submit(runtime, principal, body, prepared, origin)
    return receipt, None if receipt.replayed else prepared.response


def _repeated(runtime: Runtime, tenant_id: str, origin: Origin) -> str | None:
    """Return the job that a request with this key and these bytes made. Blocks."""
    if origin.idempotency_key is None:
        return None
    fingerprints = runtime.digests.fingerprints(origin.fingerprint)
    return jobs.job_of_repeated_body(runtime.db, tenant_id, origin.route, origin.idempotency_key, fingerprints)


async def _submit(
    runtime: Runtime, principal: JobsWriter, body: ResponseRequest, prepared: PreparedResponse, origin: OriginOf
) -> Receipt:
    """Store the job. One that searches in files or calls tools has several steps."""
    try:
        return await runtime.submissions.submit(principal, prepared.job, origin, prepared.response)
    except HeadraceError as error:
        raise as_sent(error, body) from error


async def _prepared(runtime: Runtime, tenant_id: str, body: ResponseRequest) -> PreparedResponse:
    """Return the job for the request. A prompt template is filled in in the tenant's thread."""
    make = partial(prepare, runtime.db, runtime.templates, tenant_id, body)
    return await (
        run_in_threadpool(make) if body.prompt is None else runtime.submissions.tenant_threads.run(tenant_id, make)
    )


@router.post("/input_tokens", response_model=InputTokens, summary="Count a request's input tokens")
async def count_input_tokens(runtime: RuntimeOf, principal: JobsWriter, body: ResponseRequest) -> Response:
    """Return the number of input tokens of the request. Nothing is stored. Needs the same scope as the request."""

    prepared = await _prepared(runtime, principal.tenant_id, body)
    if prepared.job.server_tools is not None:
        raise InvalidRequest("tokens of tools that the server calls are not counted: leave them out", param="tools")
    try:
        count = await run_in_threadpool(runtime.submissions.count_tokens, principal, prepared.job)
        return JsonResponse(InputTokens(input_tokens=count))
    except HeadraceError as error:
        raise as_sent(error, body) from error


@router.get(
    "/{response_id:response_id}",
    response_class=Response,
    responses=DOCUMENTED_RESPONSE_OR_EVENTS,
    summary="Retrieve or stream a response",
)
async def get_response(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsReader,
    response_id: ResponseId,
    stream: Annotated[bool, Query(description="send the events instead")] = False,
    starting_after: Annotated[int | None, Query(ge=0, lt=1 << 53, description="the number of the last event")] = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", description="the same")] = None,
    include: Include = None,
) -> Response:
    """Return the response in its current state, or stream its events after a given number, as long as it is kept.

    If the connection closes before the terminal event, reconnect with the number of the last event.
    """
    job, row = await _find(runtime, principal.tenant_id, response_id)
    is_shown = RESULTS in (include or ())
    if not stream:
        return ObjectResponse(response_object(job, await _whole(runtime, job, row, is_shown)), headers=_headers(job))
    after = starting_after if last_event_id is None else _number(last_event_id)
    await runtime.streams.enter(request)
    events = read_events(runtime, job, row, BEFORE_ALL if after is None else after, with_found=is_shown)
    return ClientConnection(runtime, job, is_kept=True).stream(events, _headers(job))


@router.delete("/{response_id:response_id}", response_model=Deleted, summary="Delete a response")
async def delete_response(runtime: RuntimeOf, principal: JobsWriter, response_id: ResponseId) -> Response:
    """Cancel the response if it has not ended, and delete its input and output. The job's row is kept."""
    job, _ = await _find(runtime, principal.tenant_id, response_id)
    if not job.state.is_terminal:
        await cancel_response(runtime, job)
    await run_in_threadpool(stored_responses.delete, runtime.db, principal.tenant_id, job.id, actor=principal.key_id)
    return JsonResponse(Deleted(id=response_id, object="response"))


@router.post(
    "/{response_id:response_id}/cancel",
    response_class=Response,
    responses=DOCUMENTED_RESPONSE,
    summary="Cancel a response",
)
async def cancel(runtime: RuntimeOf, principal: JobsWriter, response_id: ResponseId) -> Response:
    """Cancel a background response. A response that has ended is returned unchanged."""
    job, row = await _find(runtime, principal.tenant_id, response_id)
    if not row.is_background:
        raise InvalidRequest("only a `background` response can be cancelled: close the connection instead")
    ended = await cancel_response(runtime, job)
    whole = await _whole(runtime, ended, row, with_found=False)
    return ObjectResponse(response_object(ended, whole), headers=_headers(job))


@router.get(
    "/{response_id:response_id}/input_items", response_model=InputItems, summary="List a response's input items"
)
async def list_input_items(
    runtime: RuntimeOf,
    principal: JobsReader,
    response_id: ResponseId,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
    include: Include = None,
) -> Response:
    """Return the input items of the response, including those of previous responses, newest first by default."""
    items = await run_in_threadpool(
        read_response, stored_responses.get_input, runtime.db, principal.tenant_id, response_id
    )
    return JsonResponse(_page(items if order == "asc" else items[::-1], limit, after))


def _page(items: Sequence[dict[str, Any]], limit: int, after: str | None) -> InputItems:
    start = 0
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest(f"{after[:80]!r} is not an item of this response", param="after")
        start = ids.index(after) + 1
    page = list(items[start : start + limit])
    return InputItems(
        data=page,
        first_id=page[0]["id"] if page else None,
        last_id=page[-1]["id"] if page else None,
        has_more=len(items) > start + limit,
    )


async def _find(runtime: Runtime, tenant_id: str, response_id: str) -> tuple[Job, StoredResponse]:
    row = await run_in_threadpool(read_response, stored_responses.get, runtime.db, tenant_id, response_id)
    return await runtime.reader.get(tenant_id, row.job_id), row


async def _whole(runtime: Runtime, job: Job, row: StoredResponse, with_found: bool) -> StoredResponse:
    """Return the row with what its answer shows of other steps."""
    if with_found:
        row = replace(row, found=await run_in_threadpool(read_found, runtime.db, job))
    return await run_in_threadpool(with_turns, runtime.db, job, row) if has_turns(job) else row


def _headers(job: Job) -> dict[str, str]:
    location = f"/v1/responses/{response_id(job.id)}"
    return {"X-Job-Id": job.id, "X-Model-Version": str(job.model_version), "Content-Location": location}


def _number(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) < 16):
        raise InvalidRequest("the Last-Event-ID of a response is a number", param="Last-Event-ID")
    return int(last_event_id)

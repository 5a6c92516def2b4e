"""Routes of Anthropic's Messages API: a message, whole or streamed, and the count of its tokens."""

from functools import partial

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.anthropic.errors import error_object
from headrace.features.anthropic.message_answer import MessageAnswer
from headrace.features.anthropic.message_request import CountTokensRequest, MessageRequest, as_sent, to_job
from headrace.features.anthropic.message_views import DOCUMENTED_ERRORS, DOCUMENTED_MESSAGE, MessageTokensCount
from headrace.features.anthropic.turns_message import TurnsMessageAnswer
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.job_options import is_kept
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.jobs.synchronous import CompletionResponder, StreamFormat
from headrace.producer_api.server.errors import body_of, status_of
from headrace.producer_api.server.sse import named
from headrace.producer_api.streaming.turns import has_turns
from headrace.store.errors import HeadraceError

router = APIRouter(prefix="/v1/messages", tags=["anthropic"], route_class=StrictJsonRoute, responses=DOCUMENTED_ERRORS)


def _error_event(request_id: str, error: HeadraceError) -> bytes:
    return named(error_object(status_of(error), body_of(error)["error"], request_id))


@router.post("", response_class=Response, responses=DOCUMENTED_MESSAGE, summary="Create a message")
async def create_message(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: MessageRequest, origin: OriginOf
) -> Response:
    """Store a job for the conversation, and send the message when the job has ended or stream it as it is generated.

    If the client disconnects before the end, the job is cancelled, unless `job.on_disconnect` is `continue`. The key
    may be sent as `x-api-key`.

    With `server_tools`, the server makes the calls and lets the model go on: `mcp_tool_use` and `mcp_tool_result`.
    """
    await runtime.streams.enter(request)
    try:
        wanted = to_job(body)
        receipt = await runtime.submissions.submit(principal, wanted, origin)
    except HeadraceError as error:
        raise as_sent(error) from error
    job = receipt.job or await runtime.reader.get(principal.tenant_id, receipt.job_id)
    headers = {**receipt.headers, "X-Job-Id": job.id, "X-Model-Version": str(job.model_version)}
    stream_format = StreamFormat(
        named, partial(_error_event, request.state.request_id), ping=named({"type": "ping"}), end=b""
    )
    answer = TurnsMessageAnswer(job) if has_turns(job) else MessageAnswer(job)
    call = CompletionResponder(runtime, job, answer, is_kept=is_kept(body.job), stream_format=stream_format)
    return call.stream(headers) if body.stream else await call.answer(request, headers)


@router.post("/count_tokens", response_model=MessageTokensCount, summary="Count a message's input tokens")
async def count_message_tokens(runtime: RuntimeOf, principal: JobsWriter, body: CountTokensRequest) -> Response:
    """Return the number of input tokens of the request. Nothing is stored. Needs the same scope as the request."""
    try:
        count = await run_in_threadpool(runtime.submissions.count_tokens, principal, to_job(body))
    except HeadraceError as error:
        raise as_sent(error) from error
    return JsonResponse(MessageTokensCount(input_tokens=count))

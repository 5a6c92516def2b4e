"""Routes of OpenAI's chat and text completions, whole or streamed. Each request is stored as a job."""

from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.openai.chat_answer import ChatAnswer, answer_to
from headrace.features.openai.chat_request import ChatRequest
from headrace.features.openai.chat_request import to_job as chat_job
from headrace.features.openai.chat_views import DOCUMENTED_COMPLETION, DOCUMENTED_TEXT_COMPLETION
from headrace.features.openai.completion_answer import CompletionAnswer
from headrace.features.openai.completion_request import CompletionRequest
from headrace.features.openai.completion_request import to_job as completion_job
from headrace.features.openai.request_fields import TextRequest, as_sent
from headrace.features.openai.turns_answer import TurnsChatAnswer
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.job_options import is_kept
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.jobs.synchronous import CompletionResponder, StreamFormat, error_data
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.server.sse import PING, data_only
from headrace.producer_api.streaming.answers import Answer
from headrace.producer_api.streaming.turns import has_turns
from headrace.producer_api.submission.draft_job import Origin
from headrace.store.errors import HeadraceError
from headrace.store.jobs.jobs import Job
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tenants.api_keys import Principal

STREAM_FORMAT = StreamFormat(data_only, error_data, PING, b"data: [DONE]\n\n")
_DIGEST_CHARS = 12

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictJsonRoute, responses=DOCUMENTED)


@router.post(
    "/chat/completions",
    response_class=Response,
    responses=DOCUMENTED_COMPLETION,
    summary="Create a chat completion",
)
async def create_chat_completion(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsWriter,
    body: ChatRequest,
    origin: OriginOf,
) -> Response:
    """Store a job for the conversation, and send the answer when the job has ended or stream it as it is generated.

    If the client disconnects before the end, the job is cancelled, unless `job.on_disconnect` is `continue`.

    `response_format` and `structured_outputs` (`json`, `regex`, `choice` or `grammar`) constrain the answer. A complete
    answer matches the constraint; an answer that stops at the token limit (`finish_reason` `length`) is only the
    beginning of a match. A schema that is not supported is refused with `invalid_json_schema`.

    With `server_tools`, the server makes the calls and lets the model go on. A stream has the text of each turn, and in
    `server_tool_calls` of a delta each call with its result.

    With `n`, several answers are generated together; in a stream each chunk has the `index` of its answer.
    """
    await runtime.streams.enter(request)
    job, headers = await _submit(runtime, principal, body, chat_job(body), origin, is_stored=body.store)
    shared = await _shared(runtime, job, body)
    new_answer = partial(TurnsChatAnswer if has_turns(job) else ChatAnswer, with_usage=body.wants_usage, shared=shared)
    answer = answer_to(job, new_answer)
    return await _answer(request, runtime, job, body, answer, headers)


@router.post(
    "/completions", response_class=Response, responses=DOCUMENTED_TEXT_COMPLETION, summary="Create a text completion"
)
async def create_completion(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsWriter,
    body: CompletionRequest,
    origin: OriginOf,
) -> Response:
    """Continue the prompt without a chat template; otherwise the same as a chat completion.

    With several prompts, the answers to the first one come first: the `index` is the number of the prompt times `n`,
    plus the number of the answer.
    """
    await runtime.streams.enter(request)
    job, headers = await _submit(runtime, principal, body, completion_job(body), origin)
    shared = await _shared(runtime, job, body)
    answer = answer_to(job, partial(CompletionAnswer, with_usage=body.wants_usage, shared=shared))
    return await _answer(request, runtime, job, body, answer, headers)


async def _submit(
    runtime: Runtime,
    principal: Principal,
    body: TextRequest,
    wanted: GenerateRequest,
    origin: Origin,
    *,
    is_stored: bool | None = None,
) -> tuple[Job, dict[str, str]]:
    """Store the job; return it and the headers of the answer."""
    try:
        receipt = await runtime.submissions.submit(principal, wanted, origin, is_stored=is_stored)
    except HeadraceError as error:
        raise as_sent(error, body) from error
    job = receipt.job or await runtime.reader.get(principal.tenant_id, receipt.job_id)
    return job, {**receipt.headers, "X-Job-Id": job.id, "X-Model-Version": str(job.model_version)}


async def _shared(runtime: Runtime, job: Job, body: TextRequest) -> dict[str, Any]:
    """Return the fields of the whole answer and of each chunk that are not the job's own."""
    own: dict[str, Any] = {} if body.service_tier is None else {"service_tier": body.service_tier}
    return own | {"system_fingerprint": await fingerprint_of(runtime, job)}


async def fingerprint_of(runtime: Runtime, job: Job) -> str:
    """Return the ``system_fingerprint`` of an answer: version and digest of the model."""
    digest = await runtime.catalog.digest(job.model, job.model_version)
    return f"fp_{job.model_version}_{digest[:_DIGEST_CHARS]}"


async def _answer(
    request: Request, runtime: Runtime, job: Job, body: TextRequest, answer: Answer, headers: dict[str, str]
) -> Response:
    call = CompletionResponder(runtime, job, answer, is_kept=is_kept(body.job), stream_format=STREAM_FORMAT)
    return call.stream(headers) if body.stream else await call.answer(request, headers)

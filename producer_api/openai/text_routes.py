"""The OpenAI face: chat and text completions, whole or streamed, answered by an ordinary job."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.access.auth import JobsWriter
from producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from producer_api.openai.chat_answer import Answer, Completion
from producer_api.openai.chat_request import ChatRequest
from producer_api.openai.chat_request import to_job as chat_job
from producer_api.openai.chat_views import DOCUMENTED_COMPLETION, DOCUMENTED_TEXT_COMPLETION
from producer_api.openai.completion_answer import TextCompletion
from producer_api.openai.completion_request import CompletionRequest
from producer_api.openai.completion_request import to_job as completion_job
from producer_api.openai.job_options import is_kept
from producer_api.openai.synchronous import Call
from producer_api.openai.text_request import TextRequest, as_sent
from producer_api.runtime import Runtime
from producer_api.server.errors import DOCUMENTED
from producer_api.submission.draft_job import Origin
from store.errors import HeadraceError
from store.jobs.jobs import Job
from store.tasks.generate import GenerateRequest
from store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictJsonRoute, responses=DOCUMENTED)


@router.post(
    "/chat/completions",
    response_class=Response,
    responses=DOCUMENTED_COMPLETION,
    summary="Answer a conversation",
)
async def create_chat_completion(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsWriter,
    body: ChatRequest,
    origin: OriginOf,
) -> Response:
    """Store a job for the conversation and answer when it has ended, or stream it as it comes.

    A caller who leaves before the end cancels the job, unless `job.on_disconnect` is `continue`.

    `response_format` and `structured_outputs` (`json`, `regex`, `choice` or `grammar`) say what the answer must look
    like. One that ends by itself follows it; one that ends at the most tokens (`finish_reason` `length`) is only the
    beginning of one that does. A schema that cannot be followed is refused with `invalid_json_schema`.
    """
    await runtime.streams.enter(request)
    job, headers = await _submit(runtime, principal, body, chat_job(body), origin)
    return await _answer(request, runtime, job, body, Completion(job, with_usage=body.wants_usage), headers)


@router.post("/completions", response_class=Response, responses=DOCUMENTED_TEXT_COMPLETION, summary="Continue a text")
async def create_completion(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsWriter,
    body: CompletionRequest,
    origin: OriginOf,
) -> Response:
    """Continue a prompt as it stands, without a chat template; otherwise as for a conversation."""
    await runtime.streams.enter(request)
    job, headers = await _submit(runtime, principal, body, completion_job(body), origin)
    return await _answer(request, runtime, job, body, TextCompletion(job, with_usage=body.wants_usage), headers)


async def _submit(
    runtime: Runtime, principal: Principal, body: TextRequest, wanted: GenerateRequest, origin: Origin
) -> tuple[Job, dict[str, str]]:
    """Return the job that was stored for the request, and the headers of its answer."""
    try:
        receipt = await runtime.submissions.submit(principal, wanted, origin)
    except HeadraceError as error:
        raise as_sent(error, body) from error
    job = receipt.job or await runtime.reader.get(principal.tenant_id, receipt.job_id)
    return job, {**receipt.headers, "X-Job-Id": job.id, "X-Model-Version": str(job.model_version)}


async def _answer(
    request: Request, runtime: Runtime, job: Job, body: TextRequest, answer: Answer, headers: dict[str, str]
) -> Response:
    call = Call(runtime, job, answer, is_kept=is_kept(body.job))
    return call.stream(headers) if body.stream else await call.answer(request, headers)

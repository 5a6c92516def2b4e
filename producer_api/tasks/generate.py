"""The API of the task ``generate``: OpenAI's chat completions, completions and responses."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from headrace.producer_api.http.unknown_fields import unsupported
from headrace.producer_api.openai import text_routes
from headrace.producer_api.openai.chat_answer import ChatAnswer
from headrace.producer_api.openai.chat_request import ChatRequest
from headrace.producer_api.openai.chat_request import to_job as chat_job
from headrace.producer_api.openai.choices_answer import answer_to
from headrace.producer_api.openai.completion_answer import CompletionAnswer
from headrace.producer_api.openai.completion_request import CompletionRequest
from headrace.producer_api.openai.completion_request import to_job as completion_job
from headrace.producer_api.openai.request_fields import TextRequest, as_sent
from headrace.producer_api.responses import response_routes
from headrace.producer_api.responses.field_names import as_sent as response_as_sent
from headrace.producer_api.responses.mcp_approvals import answered_calls
from headrace.producer_api.responses.mcp_items import with_turns
from headrace.producer_api.responses.mcp_tools import called_by, calls_tools
from headrace.producer_api.responses.response_answer import response_object
from headrace.producer_api.responses.response_request import ResponseContext, ResponseRequest
from headrace.producer_api.responses.response_request import to_job as response_job
from headrace.producer_api.stored_chats import stored_chat_routes
from headrace.producer_api.streaming.answers import Answer, answer_of
from headrace.producer_api.tasks.task_routes import ParseBody, ParsedRequest, TaskRoutes
from headrace.store.db.database import Database
from headrace.store.jobs import responses
from headrace.store.jobs.jobs import Job
from headrace.store.jobs.responses import StoredResponse
from headrace.store.tasks.generate import GENERATE, GenerateRequest

_BATCH_TIER = "flex"
"""The ``service_tier`` of every line of a batch, whatever it has asked for."""

RequestType = TypeVar("RequestType", bound=TextRequest)


def _text(
    shape: type[RequestType], to_job: Callable[[RequestType], GenerateRequest], new_answer: Callable[..., Answer]
) -> ParseBody:
    """Return the reader of a request for text."""

    def parse(body: Mapping[str, Any]) -> ParsedRequest:
        request = shape.model_validate(body)
        shared = {} if request.service_tier is None else {"service_tier": _BATCH_TIER}
        return ParsedRequest(
            to_job(request),
            lambda job: answer_to(job, partial(new_answer, shared=shared)).full_answer(job),
            lambda error: as_sent(error, request),
            is_stored=request.store if isinstance(request, ChatRequest) else None,
        )

    return parse


def _response(body: Mapping[str, Any]) -> ParsedRequest:
    request = ResponseRequest.model_validate(body)
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(request, name) is not None:
            raise unsupported(f"`{name}` is not supported in a batch: send what it stands for", name)
    answered_calls(request, (), (), None)
    return _parsed_response(request, ResponseContext())


def _parsed_response(request: ResponseRequest, context: ResponseContext) -> ParsedRequest:
    prepared = response_job(request, context)
    response = replace(prepared.response, request={**prepared.response.request, "service_tier": _BATCH_TIER})

    def answer(job: Job) -> dict[str, Any]:
        answer_of(job)
        return response_object(job, StoredResponse.of(job.id, response))

    parsed = ParsedRequest(prepared.job, answer, lambda error: response_as_sent(error, request), response)
    if not calls_tools(request):
        return parsed

    def with_tools(db: Database, tenant_id: str) -> ParsedRequest:
        return _parsed_response(request, replace(context, called=called_by(db, tenant_id, request)))

    return replace(parsed, with_tools=with_tools, read_answer=_response_with_turns)


def _response_with_turns(db: Database, job: Job) -> dict[str, Any]:
    """Return a response with its calls, and with the tools of its servers as they were when it was accepted."""
    answer_of(job)
    row = responses.get(db, job.tenant_id, job.id, unstored=True)
    return response_object(job, with_turns(db, job, row))


GENERATE_ROUTES = TaskRoutes(
    GENERATE,
    (text_routes.router, stored_chat_routes.router, response_routes.router),
    {
        "/v1/chat/completions": _text(ChatRequest, chat_job, ChatAnswer),
        "/v1/completions": _text(CompletionRequest, completion_job, CompletionAnswer),
        "/v1/responses": _response,
    },
)

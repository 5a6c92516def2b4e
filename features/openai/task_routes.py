"""OpenAI's chat and text completions as a face of the task ``generate``."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from headrace.features.openai import stored_chat_routes, text_routes
from headrace.features.openai.chat_answer import ChatAnswer, answer_to
from headrace.features.openai.chat_request import ChatRequest
from headrace.features.openai.chat_request import to_job as chat_job
from headrace.features.openai.completion_answer import CompletionAnswer
from headrace.features.openai.completion_request import CompletionRequest
from headrace.features.openai.completion_request import to_job as completion_job
from headrace.features.openai.request_fields import BATCH_TIER, TextRequest, as_sent
from headrace.producer_api.streaming.answers import Answer
from headrace.producer_api.tasks.task_routes import ParseBody, ParsedRequest, TaskRoutes
from headrace.store.tasks.generate import GENERATE, GenerateRequest

RequestType = TypeVar("RequestType", bound=TextRequest)


def _text(
    shape: type[RequestType], to_job: Callable[[RequestType], GenerateRequest], new_answer: Callable[..., Answer]
) -> ParseBody:
    """Return the reader of a request for text."""

    def parse(body: Mapping[str, Any]) -> ParsedRequest:
        request = shape.model_validate(body)
        shared = {} if request.service_tier is None else {"service_tier": BATCH_TIER}
        return ParsedRequest(
            to_job(request),
            lambda job: answer_to(job, partial(new_answer, shared=shared)).full_answer(job),
            lambda error: as_sent(error, request),
            is_stored=request.store if isinstance(request, ChatRequest) else None,
        )

    return parse


PART = TaskRoutes(
    GENERATE,
    (text_routes.router, stored_chat_routes.router),
    {
        "/v1/chat/completions": _text(ChatRequest, chat_job, ChatAnswer),
        "/v1/completions": _text(CompletionRequest, completion_job, CompletionAnswer),
    },
)

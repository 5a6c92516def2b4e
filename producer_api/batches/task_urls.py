"""The task URLs as functions: what a body sent to one means as a job, and how the job's end reads as its answer.

The routes and the batches both go through here, so a line of a batch means what the same request would have meant.
Knows no HTTP and stores nothing. A new task joins ``TASK_URLS`` with one entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from producer_api.openai.chat_answer import Answer, Completion, answer_of
from producer_api.openai.chat_request import ChatRequest
from producer_api.openai.chat_request import to_job as chat_job
from producer_api.openai.completion_answer import TextCompletion
from producer_api.openai.completion_request import CompletionRequest
from producer_api.openai.completion_request import to_job as completion_job
from producer_api.openai.embedding_request import EmbeddingRequest
from producer_api.openai.embedding_request import as_sent as embedding_as_sent
from producer_api.openai.embedding_request import to_job as embedding_job
from producer_api.openai.embedding_request import whole as embeddings_of
from producer_api.openai.text_request import TextRequest, as_sent, unsupported
from producer_api.responses.response_answer import response_object
from producer_api.responses.response_request import Before, ResponseRequest
from producer_api.responses.response_request import as_sent as response_as_sent
from producer_api.responses.response_request import to_job as response_job
from producer_api.server.errors import from_validation
from store.errors import HeadraceError, InvalidRequest
from store.jobs.jobs import Job
from store.jobs.responses import NewResponse, StoredResponse
from store.tasks.generate import GenerateRequest
from store.tasks.registry import JobRequest


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a body asks for: a job, the answer that a job's end makes, and a complaint about the job in its words.

    ``answer`` raises JobUnanswered for a job that has not succeeded. ``response`` is what is stored beside the job.
    """

    job: JobRequest
    answer: Callable[[Job], dict[str, Any]]
    complain: Callable[[HeadraceError], HeadraceError]
    response: NewResponse | None = None


Read = Callable[[Mapping[str, Any]], Wanted]
Asked = TypeVar("Asked", bound=TextRequest)


def _text(shape: type[Asked], to_job: Callable[[Asked], GenerateRequest], answer: Callable[[Job], Answer]) -> Read:
    """Return the reader of a request for text."""

    def read(body: Mapping[str, Any]) -> Wanted:
        asked = shape.model_validate(body)
        return Wanted(to_job(asked), lambda job: answer(job).whole(job), lambda error: as_sent(error, asked))

    return read


def _read_embeddings(body: Mapping[str, Any]) -> Wanted:
    asked = EmbeddingRequest.model_validate(body)
    return Wanted(
        embedding_job(asked),
        lambda job: embeddings_of(job, asked.encoding_format),
        lambda error: embedding_as_sent(error, asked),
    )


def _read_response(body: Mapping[str, Any]) -> Wanted:
    asked = ResponseRequest.model_validate(body)
    for name in ("previous_response_id", "prompt"):
        if getattr(asked, name) is not None:
            raise unsupported(f"`{name}` is not supported in a batch: send what it stands for", name)
    made = response_job(asked, Before())
    beside = replace(made.response, request={**made.response.request, "service_tier": "flex"})

    def answer(job: Job) -> dict[str, Any]:
        answer_of(job)
        return response_object(job, StoredResponse.of(job.id, beside))

    return Wanted(made.job, answer, lambda error: response_as_sent(error, asked), beside)


TASK_URLS: dict[str, Read] = {
    "/v1/chat/completions": _text(ChatRequest, chat_job, Completion),
    "/v1/completions": _text(CompletionRequest, completion_job, TextCompletion),
    "/v1/embeddings": _read_embeddings,
    "/v1/responses": _read_response,
}
"""Each raises InvalidRequest, or pydantic's ValidationError, for a body that its route would refuse."""


def read_task(url: str, body: Mapping[str, Any]) -> Wanted:
    """Return what the body means at this URL. Raises InvalidRequest as the route would, and for a URL of no task."""
    read = TASK_URLS.get(url)
    if read is None:
        raise InvalidRequest(f"`url` must be one of {', '.join(sorted(TASK_URLS))}", param="url")
    if body.get("stream"):
        raise InvalidRequest("a batch has no streams: leave `stream` out", param="stream")
    try:
        return read(body)
    except ValidationError as error:
        raise from_validation(error.errors(include_input=False)) from error

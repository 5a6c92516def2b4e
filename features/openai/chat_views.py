"""Models of completions for the OpenAPI document only: ``chat_answer`` and ``completion_answer`` build the JSON."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from headrace.store.payloads.conversation import ToolCall
from headrace.store.payloads.prompt_reference import PromptUse
from headrace.store.payloads.retrieval import FileCitation
from headrace.store.payloads.truncation import Truncated
from headrace.store.tasks.generate import TokenLogprob


class AnswerMessage(BaseModel):
    """The message that the model generated."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = Field(None, description="absent if the model called no tool")
    annotations: list[FileCitation] | None = Field(None, description="the passages of the prompt, with `retrieval`")


class AnswerLogprobs(BaseModel):
    """Log probabilities (natural logarithm) of the answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerChoice(BaseModel):
    """One of the answers."""

    index: int
    message: AnswerMessage
    logprobs: AnswerLogprobs | None = None
    finish_reason: str = Field(description="stop, length, tool_calls")


class PromptTokensDetails(BaseModel):
    """Prompt tokens with reduced cost."""

    cached_tokens: int = Field(description="tokens found in the worker's prefix cache")


class CompletionTokensDetails(BaseModel):
    """Parts of the completion tokens."""

    reasoning_tokens: int = Field(description="tokens of the model's reasoning")


class AnswerUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AnswerFrame(BaseModel):
    """Fields of every completion."""

    id: str
    created: int = Field(description="Unix seconds")
    model: str = Field(description="name and version of the model that answered")
    truncated: Truncated | None = Field(None, description="what was left out of the input; absent: nothing")
    template: PromptUse | None = Field(None, description="the prompt template that was filled in; absent: none")
    system_fingerprint: str | None = Field(
        None, description="version and digest of the model; absent in the results of batches"
    )
    service_tier: str | None = Field(
        None, description="as the request says it, in a batch flex; absent if it says nothing"
    )


class ChatCompletion(AnswerFrame):
    """A chat completion."""

    object: Literal["chat.completion"]
    choices: list[AnswerChoice]
    usage: AnswerUsage


class TextLogprobs(BaseModel):
    """Log probabilities of the text's tokens in OpenAI's older format: four lists of the same length."""

    tokens: list[str] = Field(description="`bytes:` and the bytes of a token that is not valid UTF-8")
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int] = Field(description="offset in characters of the answer's text")


class TextChoice(BaseModel):
    """One of the answers."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str = Field(description="stop, length")


class TextCompletion(AnswerFrame):
    """A text completion."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: AnswerUsage


_USAGE = {
    "prompt_tokens": 32,
    "completion_tokens": 2,
    "total_tokens": 34,
    "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
_ANSWER = {
    "id": "chatcmpl-0197f0c2a3b47d518e9a2b6c7d8e9f01",
    "object": "chat.completion",
    "created": 1764086400,
    "model": "smollm2@1",
    "system_fingerprint": "fp_1_5f70bf18a086",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": _USAGE,
}
_CHUNK = (
    'data: {"id":"chatcmpl-0197…","object":"chat.completion.chunk","created":1764086400,"model":"smollm2@1",'
    '"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}\n\n'
)

_TOOL_CHUNK = (
    'data: {"id":"chatcmpl-0197…","object":"chat.completion.chunk","created":1764086400,"model":"smollm2@1",'
    '"choices":[{"index":0,"delta":{"server_tool_calls":[{"index":0,"status":"completed","output":"22 degrees"}]},'
    '"finish_reason":null}]}\n\n'
)

_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_TEXT = {
    "id": "cmpl-0197f0c2a3b47d518e9a2b6c7d8e9f01",
    "object": "text_completion",
    "created": 1764086400,
    "model": "smollm2@1",
    "choices": [{"index": 0, "text": " turns", "logprobs": None, "finish_reason": "length"}],
    "usage": _USAGE,
}
_TEXT_CHUNK = (
    'data: {"id":"cmpl-0197…","object":"text_completion","created":1764086400,"model":"smollm2@1",'
    '"choices":[{"index":0,"text":" turns","logprobs":null,"finish_reason":null}]}\n\n'
)

DOCUMENTED_COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ChatCompletion,
        "description": "The completion, or with `stream` its chunks and then `data: [DONE]`",
        "content": {
            "application/json": {"example": _ANSWER},
            "text/event-stream": {"schema": _EVENT, "example": f"{_TOOL_CHUNK}{_CHUNK}data: [DONE]\n\n"},
        },
    }
}

DOCUMENTED_TEXT_COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": TextCompletion,
        "description": "The completion, or with `stream` its chunks and then `data: [DONE]`",
        "content": {
            "application/json": {"example": _TEXT},
            "text/event-stream": {"schema": _EVENT, "example": f"{_TEXT_CHUNK}data: [DONE]\n\n"},
        },
    }
}

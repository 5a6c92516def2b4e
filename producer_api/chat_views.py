"""What a chat completion looks like, for the OpenAPI document alone: ``chat_answer`` makes the real ones."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None


class AnswerChoice(BaseModel):
    """The one answer there is."""

    index: int
    message: AnswerMessage
    finish_reason: str = Field(description="stop, length, tool_calls")


class AnswerUsage(BaseModel):
    """How many tokens it took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """An answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Unix seconds")
    model: str = Field(description="the name and version that answered")
    choices: list[AnswerChoice]
    usage: AnswerUsage


_ANSWER = {
    "id": "chatcmpl-0197f0c2a3b47d518e9a2b6c7d8e9f01",
    "object": "chat.completion",
    "created": 1764086400,
    "model": "smollm2@1",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 32, "completion_tokens": 2, "total_tokens": 34},
}
_CHUNK = (
    'data: {"id":"chatcmpl-0197…","object":"chat.completion.chunk","created":1764086400,"model":"smollm2@1",'
    '"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}\n\n'
)

_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}

DOCUMENTED_COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ChatCompletion,
        "description": "The completion, or with `stream` its chunks and then `data: [DONE]`",
        "content": {
            "application/json": {"example": _ANSWER},
            "text/event-stream": {"schema": _EVENT, "example": f"{_CHUNK}data: [DONE]\n\n"},
        },
    }
}

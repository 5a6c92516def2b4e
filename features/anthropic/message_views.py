"""Messages in the OpenAPI document: an example, and their errors. ``message_answer`` builds the JSON of messages."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from headrace.features.anthropic.errors import ERROR_TYPES, error_type
from headrace.producer_api.server.errors import DOCUMENTED


class AnthropicErrorDetail(BaseModel):
    """What went wrong and what to do about it."""

    type: str = Field(description=", ".join(ERROR_TYPES))
    message: str
    param: str | None = None
    code: str
    details: dict[str, str] | None = Field(
        None, description="`error_code`: Anthropic's code, where its clients act upon it; absent otherwise"
    )


class AnthropicError(BaseModel):
    """An error in the shape of Anthropic's API."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str | None


class MessageTokensCount(BaseModel):
    """Number of input tokens for the model."""

    input_tokens: int


_MESSAGE = {
    "id": "msg_0197f0c2a3b47d518e9a2b6c7d8e9f01",
    "type": "message",
    "role": "assistant",
    "model": "smollm2@1",
    "content": [{"type": "text", "text": "Hello!"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 16,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 16,
        "output_tokens": 2,
        "service_tier": "priority",
    },
}
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
_DELTA = '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}'

DOCUMENTED_MESSAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The message, or with `stream` its events, from `message_start` to `message_stop`",
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": _MESSAGE},
            "text/event-stream": {
                "schema": _EVENT,
                "example": f"event: content_block_delta\ndata: {_DELTA}\n\n"
                'event: message_stop\ndata: {"type":"message_stop"}\n\n',
            },
        },
    }
}

DOCUMENTED_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "model": AnthropicError,
        "description": error_type(int(status)),
    }
    for status in DOCUMENTED
}

"""Models of messages and of their errors for the OpenAPI document: ``message_answer`` builds the JSON of messages."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from headrace.features.anthropic.errors import ERROR_TYPES, error_type
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.payloads.prompt_reference import PromptUse
from headrace.store.payloads.truncation import Truncated


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


class AnswerBlock(BaseModel):
    """A part of the answer: the model's thinking, a text, a tool use that the caller runs, or one of the server."""

    type: Literal["thinking", "text", "tool_use", "mcp_tool_use", "mcp_tool_result"]
    thinking: str | None = Field(None, description="of a thinking block")
    signature: str | None = Field(None, description="of a thinking block; it has no meaning here")
    text: str | None = Field(None, description="of a text block")
    id: str | None = Field(None, description="of a tool use: the `tool_use_id` of its result")
    name: str | None = Field(None, description="of a tool use: the tool")
    server_name: str | None = Field(None, description="of an `mcp_tool_use`: the server of MCP, or headrace")
    tool_use_id: str | None = Field(None, description="of an `mcp_tool_result`: the use that it is of")
    is_error: bool | None = Field(None, description="of an `mcp_tool_result`: the call has failed")
    content: list[dict[str, Any]] | None = Field(None, description="of an `mcp_tool_result`: a block of text")
    input: dict[str, Any] | None = Field(
        None, description="of a tool use: the tool's input; what is complete of it if the token limit cut it"
    )


class MessageUsage(BaseModel):
    """Token counts. The prompt has all three kinds of input tokens together."""

    input_tokens: int = Field(description="tokens of the prompt that were computed")
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: int = Field(description="tokens of the prompt that were found in a prefix cache")
    output_tokens: int
    service_tier: Literal["priority", "standard", "batch"] = Field(description="the job's class")


class Message(BaseModel):
    """An answer of the model."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str = Field(description="name and version of the model that answered")
    content: list[AnswerBlock] = Field(description="the blocks of the answer; none if it is empty")
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] = Field(
        description="why the answer ended"
    )
    stop_sequence: str | None = Field(description="the text of `stop_sequences` that ended it; null if none did")
    usage: MessageUsage
    truncated: Truncated | None = Field(None, description="what was left out of the input; absent: nothing")
    template: PromptUse | None = Field(None, description="the prompt template that was filled in; absent: none")


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
        "model": Message,
        "description": "The message, or with `stream` its events, from `message_start` to `message_stop`",
        "content": {
            "application/json": {"example": _MESSAGE},
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

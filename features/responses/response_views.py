"""Models of a response for the OpenAPI document only: ``response_answer`` builds the JSON."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class ResponseObject(BaseModel):
    """A stored answer, with the parameters of its request."""

    id: str
    object: Literal["response"]
    created_at: int = Field(description="Unix seconds")
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    model: str = Field(description="name and version of the model that answers")
    output: list[dict[str, Any]] = Field(description="messages and function calls")
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    metadata: dict[str, str]
    previous_response_id: str | None
    conversation: dict[str, str] | None = Field(description="`id` of the conversation that it belongs to; null if none")


_ANSWER = {
    "id": "resp_0197f0c2a3b47d518e9a2b6c7d8e9f01",
    "object": "response",
    "created_at": 1764086400,
    "completed_at": 1764086401,
    "status": "completed",
    "background": False,
    "model": "smollm2@1",
    "output": [
        {
            "id": "msg_0197f0c2a3b47d518e9a2b6c7d8e9f01",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hello!", "annotations": []}],
        }
    ],
    "usage": {"input_tokens": 32, "output_tokens": 2, "total_tokens": 34},
    "metadata": {},
}
_EVENTS = (
    'id: 0\nevent: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{...}}\n\n'
    'id: 4\nevent: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":4,...}\n\n'
    'id: 9\nevent: response.completed\ndata: {"type":"response.completed","sequence_number":9,"response":{...}}\n\n'
)
_JSON = {"application/json": {"example": _ANSWER}}

DOCUMENTED_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"model": ResponseObject, "description": "The response", "content": _JSON}
}
DOCUMENTED_RESPONSE_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ResponseObject,
        "description": "The response, or with `stream` its events",
        "content": _JSON | {"text/event-stream": {"example": _EVENTS}},
    }
}

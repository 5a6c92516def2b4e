"""Responses in the OpenAPI document: examples. ``response_answer`` builds the JSON."""

from typing import Any

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
_JSON: dict[str, Any] = {"application/json": {"schema": {"type": "object"}, "example": _ANSWER}}

DOCUMENTED_RESPONSE: dict[int | str, dict[str, Any]] = {200: {"description": "The response", "content": _JSON}}
DOCUMENTED_RESPONSE_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The response, or with `stream` its events",
        "content": _JSON | {"text/event-stream": {"example": _EVENTS}},
    }
}

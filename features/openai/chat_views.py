"""Completions in the OpenAPI document: examples. ``chat_answer`` and ``completion_answer`` build the JSON."""

from typing import Any

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

_OBJECT = {"type": "object"}
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
        "description": "The completion, or with `stream` its chunks and then `data: [DONE]`",
        "content": {
            "application/json": {"schema": _OBJECT, "example": _ANSWER},
            "text/event-stream": {"schema": _EVENT, "example": f"{_TOOL_CHUNK}{_CHUNK}data: [DONE]\n\n"},
        },
    }
}

DOCUMENTED_TEXT_COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The completion, or with `stream` its chunks and then `data: [DONE]`",
        "content": {
            "application/json": {"schema": _OBJECT, "example": _TEXT},
            "text/event-stream": {"schema": _EVENT, "example": f"{_TEXT_CHUNK}data: [DONE]\n\n"},
        },
    }
}

DOCUMENTED_STORED_CHAT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The chat completion with its metadata",
        "content": {"application/json": {"schema": _OBJECT, "example": _ANSWER | {"metadata": {"rating": "good"}}}},
    }
}

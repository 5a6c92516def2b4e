"""Requests of the Messages API and their parts, for the tests of the jobs that they become and of their refusals."""

from typing import Any

from headrace.features.anthropic.message_request import MessageRequest, to_job

ASKED: dict[str, Any] = {"model": "m", "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"type": "text", "text": "x"}
USE: dict[str, Any] = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "t1", "content": "1"}
TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
FUNCTION: dict[str, Any] = {"function": {"name": "f", "parameters": {"type": "object"}}}


def message_job(changes: dict[str, Any]) -> Any:
    """The job of the plain request with these changes."""
    return to_job(MessageRequest.model_validate(ASKED | changes))


def turns(*said: Any, role: str = "user") -> dict[str, Any]:
    """Messages of the user and the assistant, one after the other."""
    roles = (role, "user" if role == "assistant" else "assistant")
    return {"messages": [{"role": roles[index % 2], "content": one} for index, one in enumerate(said)]}


def schema(schema: Any, kind: str = "json_schema") -> dict[str, Any]:
    """A request for an answer of this JSON schema."""
    return {"output_config": {"format": {"type": kind, "schema": schema}}}

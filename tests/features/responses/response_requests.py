"""Requests for a response and their parts, for the tests of the jobs that they become and of their refusals."""

from typing import Any

from headrace.features.responses.response_request import ResponseContext, ResponseRequest, to_job

ASKED: dict[str, Any] = {"model": "m", "input": "hi"}
FUNCTION: dict[str, Any] = {"type": "function", "name": "f"}
SEARCH: dict[str, Any] = {"type": "file_search", "vector_store_ids": ["vs_1"]}
WEB: dict[str, Any] = {"type": "web_search_preview"}
CALL: dict[str, Any] = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
MCP: dict[str, Any] = {"type": "mcp_call", "server_label": "s", "name": "g", "arguments": "{}"}


def prepared(changes: dict[str, Any], context: ResponseContext | None = None) -> Any:
    """The job and the row of the plain request with these changes."""
    return to_job(ResponseRequest.model_validate(ASKED | changes), context or ResponseContext())


def said(*parts: Any, **fields: Any) -> dict[str, Any]:
    """An input of one message with these parts of content."""
    return {"input": [{"role": "user", "content": [*parts]} | fields]}


def form(**fields: Any) -> dict[str, Any]:
    """A request for a text of this format."""
    return {"text": {"format": fields}}

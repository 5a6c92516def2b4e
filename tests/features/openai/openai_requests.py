"""Requests of OpenAI's API and their parts, for the tests of the jobs that they become and of their refusals."""

from typing import Any

from headrace.features.encoders.embed import embedding_request
from headrace.features.encoders.embed.embedding_request import EmbeddingRequest
from headrace.features.openai import chat_request, completion_request
from headrace.features.openai.chat_request import ChatRequest
from headrace.features.openai.completion_request import CompletionRequest

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PROMPT: dict[str, Any] = {"model": "m", "prompt": "hi"}
TEXT: dict[str, Any] = {"model": "m", "input": "hi"}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL: dict[str, Any] = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}


def form(schema: Any) -> dict[str, Any]:
    """A request for an answer of this JSON schema."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


def chat_job(changes: dict[str, Any]) -> Any:
    """The job of the plain chat request with these changes."""
    return chat_request.to_job(ChatRequest.model_validate(CHAT | changes))


def completion_job(changes: dict[str, Any]) -> Any:
    """The job of the plain completion request with these changes."""
    return completion_request.to_job(CompletionRequest.model_validate(PROMPT | changes))


def embed_job(changes: dict[str, Any]) -> Any:
    """The job of the plain embedding request with these changes."""
    return embedding_request.to_job(EmbeddingRequest.model_validate(TEXT | changes))

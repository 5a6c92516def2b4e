"""Request and response models of stored chat completions. No I/O."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.features.openai.chat_answer import ChatAnswer, answer_to
from headrace.features.openai.stored_chats import chat_id
from headrace.producer_api.http.job_options import Metadata
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.conversation import ChatMessage, MessageImage, ToolCall
from headrace.store.payloads.strict_model import Body


class StoredChatList(BaseModel):
    """A page of stored chat completions."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]] = Field(description="chat completions, each with its `metadata`")
    first_id: str | None
    last_id: str | None
    has_more: bool


class StoredMessage(BaseModel):
    """A message of the request."""

    id: str
    role: str
    content: str | None
    content_parts: list[dict[str, Any]] | None = Field(
        None, description="of a message with images: its texts and images; null: parts of a text are joined"
    )
    refusal: None = None
    name: str | None = Field(None, description="the participant's name")
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class StoredMessageList(BaseModel):
    """A page of the messages that a stored chat completion was generated from."""

    object: Literal["list"] = "list"
    data: list[StoredMessage]
    first_id: str | None
    last_id: str | None
    has_more: bool


class StoredChatChanges(Body):
    """The body of ``POST /v1/chat/completions/{completion_id}``."""

    model_config = ConfigDict(
        extra="allow", frozen=True, json_schema_extra={"examples": [{"metadata": {"rating": "good"}}]}
    )

    metadata: Metadata | None = Field(description="replaces all of it; null: none")


def stored_chat(job: Job, shared: dict[str, Any]) -> dict[str, Any]:
    """Return the chat completion of a succeeded job. ``shared``: its fields that are not the job's own."""
    answer = answer_to(job, partial(ChatAnswer, shared=shared))
    return {**answer.full_answer(job), "metadata": job.metadata}


def page_of(objects: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return a page; ``objects`` are up to ``limit + 1``."""
    data = list(objects[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(objects) > limit,
    }


def messages_of(job: Job) -> list[dict[str, Any]]:
    """Return the messages of the job's request, oldest first."""
    found: list[dict[str, Any]] = job.payload["input"]["messages"]
    absent = {"content": None, "content_parts": None, "refusal": None}
    return [
        {**absent, **_without_images(message), **_parts(message), "id": f"{chat_id(job.id)}-{number}"}
        for number, message in enumerate(found)
    ]


def _without_images(stored: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stored.items() if name != "images"}


def _parts(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a stored message with images, as they are sent; nothing for one without."""
    if "images" not in stored:
        return {}
    return {"content_parts": [*map(_part, ChatMessage.model_validate(stored).parts)]}


def _part(part: str | MessageImage) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if part.file_id is not None:
        return {"type": "file", "file": {"file_id": part.file_id}}
    detail = {} if part.detail is None else {"detail": part.detail}
    return {"type": "image_url", "image_url": {"url": part.url, **detail}}

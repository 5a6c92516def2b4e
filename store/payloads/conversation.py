"""A conversation as typed data: messages, tools, tool calls and their results.

Limits that need no model are checked here. Chat templates and the syntax of tool calls are in ``prompts``.
"""

import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from headrace.store.payloads.image_input import MAX_IMAGES, MessageImage
from headrace.store.payloads.strict_model import MAX_TEXT_CHARS, Strict

MAX_MESSAGES = 1024
MAX_TOOLS = 128
MAX_SCHEMA_CHARS = 65_536
MAX_SCHEMA_LEVELS = 64


class Role(StrEnum):
    """Author of a chat message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
ToolCallId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
ParticipantName = Annotated[str, StringConstraints(pattern=r"^[^\s<|\\/>]{1,64}$")]


class FunctionCall(Strict):
    """A function and its arguments: the text of a JSON object, which may be malformed if a model wrote it."""

    name: FunctionName
    arguments: Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]


class ToolCall(Strict):
    """A call that the model asks the caller to run. Its result is a message of role ``tool`` with this id."""

    id: ToolCallId
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Strict):
    """One message. The assistant's may have only tool calls; a tool's is the result of one call.

    A text may be empty: an answer is, if a stop string came first, and callers send answers back.
    ``reasoning_content`` is the reasoning before an answer of the assistant; most chat templates leave it out.
    ``images`` are a user's. They go only to a server that takes them (docs/vision.md).
    """

    role: Role
    name: ParticipantName | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_call_id: ToolCallId | None = None
    content: Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)] | None = Field(None, validate_default=True)
    reasoning_content: Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)] | None = None
    images: Annotated[tuple[MessageImage, ...], Field(min_length=1, max_length=MAX_IMAGES)] | None = Field(
        None, description="images of the user, for a server that takes them"
    )

    @field_validator("content")
    @classmethod
    def _is_there(cls, content: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("tool_calls") is not None:
            return content or None
        if content is None and info.data.get("role") is not Role.ASSISTANT:
            raise PydanticCustomError("missing", "Field required")
        return content or ""

    @model_validator(mode="after")
    def _calls_and_answers(self) -> Self:
        if self.tool_calls is not None and self.role is not Role.ASSISTANT:
            raise ValueError("only the assistant has `tool_calls`")
        if self.reasoning_content is not None and self.role is not Role.ASSISTANT:
            raise ValueError("only the assistant has `reasoning_content`")
        if self.images is not None and self.role is not Role.USER:
            raise ValueError("only the user has `images`")
        if (self.tool_call_id is None) == (self.role is Role.TOOL):
            raise ValueError("a message of role `tool`, and no other, has the `tool_call_id` of the call it answers")
        return self

    @property
    def parts(self) -> Iterator[str | MessageImage]:
        """The texts and the images in their order, without empty texts."""
        text, begin = self.content or "", 0
        for image in sorted(self.images or (), key=lambda one: one.at):
            if piece := text[begin : image.at]:
                yield piece
            begin = max(begin, image.at)
            yield image
        if rest := text[begin:]:
            yield rest

    def after(self, text: str) -> Self:
        """Return the message with a text before its own, and its images where they were in its own."""
        moved = tuple(one.model_copy(update={"at": one.at + len(text)}) for one in self.images or ())
        return self.model_copy(update={"content": text + (self.content or ""), "images": moved or None})


class FunctionSpec(Strict):
    """A function that the model may call. ``parameters``: JSON Schema of an object, by default an empty one.

    With ``strict`` the arguments are constrained to the schema where this is possible. A forced call always is.
    """

    name: FunctionName
    description: Annotated[str, StringConstraints(max_length=MAX_SCHEMA_CHARS)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _is_an_object(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if parameters is not None and parameters.get("type", "object") != "object":
            raise ValueError('the arguments of a function are a JSON object: its schema has `"type": "object"`')
        if _is_deeper(parameters, MAX_SCHEMA_LEVELS):
            raise ValueError(f"a schema has at most {MAX_SCHEMA_LEVELS} levels")
        if len(json.dumps(parameters)) > MAX_SCHEMA_CHARS:
            raise ValueError(f"a schema has at most {MAX_SCHEMA_CHARS} characters")
        return parameters


def _is_deeper(value: object, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(child, levels - 1) for child in children)


class Tool(Strict):
    """A tool that the model may use: a function that the caller runs."""

    type: Literal["function"] = "function"
    function: FunctionSpec


class ToolChoiceMode(StrEnum):
    """Whether the model calls tools: never, if it decides to, or always."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


class NamedFunction(Strict):
    """A function by its name."""

    name: FunctionName


class NamedTool(Strict):
    """The one tool that the model must call."""

    type: Literal["function"] = "function"
    function: NamedFunction


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """Raise ValueError for messages that do not go together, or have more images than a request may have."""
    check_tool_results(messages)
    if (num_images := sum(len(one.images or ()) for one in messages)) > MAX_IMAGES:
        raise ValueError(f"the messages have {num_images} images: at most {MAX_IMAGES} are accepted in one request")


def check_tool_results(messages: Sequence[ChatMessage]) -> None:
    """Raise ValueError unless the results of all calls, and no others, follow the message that made the calls."""
    open_ids: set[str] = set()
    for index, message in enumerate(messages):
        if message.role is Role.TOOL:
            if message.tool_call_id not in open_ids:
                raise ValueError(f"message {index} answers a call that the assistant's turn before it has not made")
            open_ids.discard(message.tool_call_id)
            continue
        if open_ids:
            raise ValueError(f"message {index} comes before the results of {', '.join(sorted(open_ids))}")
        ids = [call.id for call in message.tool_calls or ()]
        open_ids = set(ids)
        if len(open_ids) < len(ids):
            raise ValueError(f"message {index} has two calls of one id")
    if open_ids:
        raise ValueError(f"the results of {', '.join(sorted(open_ids))} are missing at the end")

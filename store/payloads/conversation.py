"""A conversation as typed data: messages, images, tools, tool calls and their results.

Limits that need no model are checked here. Chat templates and the syntax of tool calls are in ``prompts``.

An image, in a message or as an input of its own, is a data URL, the URL of a server, or an uploaded file. The bytes of
a data URL are a part of the payload, as texts are. A URL and a file are references that the worker reads
(docs/vision.md).
"""

import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationInfo, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

from headrace.store.payloads.strict_model import MAX_TEXT_CHARS, Strict

MAX_IMAGES = 64
"""Images of one request."""

MAX_IMAGE_BYTES = 8 << 20
"""Bytes of an image as it is sent, before decoding."""

MAX_IMAGE_PIXELS = 25_000_000
"""Pixels of an image, width times height, before decoding: a small file may have very many."""

MESSAGE_IMAGES = "input.messages.images"
"""What an error calls the images of a conversation, which it counts through all messages."""

_MAX_URL_CHARS = MAX_IMAGE_BYTES * 4 // 3 + 128


_FORMS: dict[str, Any] = {
    "title": "Image",
    "description": "a URL, also one with the data, or an object with the `url` or the `file_id`",
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {
                "url": {"type": "string", "minLength": 1, "description": "an https URL, or a data URL"},
                "file_id": {"type": "string", "minLength": 1, "maxLength": 100, "description": "an uploaded file"},
            },
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        },
    ],
}


EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAA"
    "FklEQVR4nGP8z8DAwMDA8J+BgYHhPwAUCAL//zEV8wAAAABJRU5ErkJggg=="
)
"""Four pixels, red and blue."""


class Image(Strict):
    """An image: exactly one of the two. A text stands for its ``url``."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=_MAX_URL_CHARS)] | None = Field(
        None, description="an https URL, or a data URL"
    )
    file_id: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = Field(
        None, description="an uploaded file"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: object) -> object:
        return {"url": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.url is None) == (self.file_id is None):
            raise ValueError("an image is a URL, or an object with one of `url` and `file_id`")
        return self

    @property
    def data_url(self) -> str | None:
        """The URL, if it has the data itself."""
        return self.url if self.url is not None and self.url[:5].lower() == "data:" else None

    @property
    def server_url(self) -> str | None:
        """The URL, if a server has the data."""
        return None if self.data_url is not None else self.url


class MessageImage(Image):
    """An image of a chat message. ``at``: it stands after so many characters of the text, or after all if it has fewer.

    ``detail`` goes to the inference server as it is.
    """

    at: int = Field(0, strict=True, ge=0, description="it stands after so many characters of `content`")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="how closely the model looks at it")


AnyImage = Annotated[Image, WithJsonSchema(_FORMS)]

Images = Annotated[
    tuple[AnyImage, ...],
    Field(
        min_length=1,
        max_length=MAX_IMAGES,
        description='data URLs, https URLs, or uploaded files as `{"file_id": "file-…"}`',
    ),
]


class FailedImage(Strict):
    """An image that could not be read when the job ran. The other images of the job are computed."""

    index: int = Field(description="the image's place in the request, from 0")
    code: str = Field(description="`invalid_image` or `image_unavailable`")
    message: str = Field(description="why, as a sentence")


Failures = Annotated[
    tuple[FailedImage, ...] | None, Field(description="the images that could not be read; null: all could")
]


def images_of(source: object) -> tuple[Image, ...]:
    """Return the images of a job's input and of its messages, in order; none for an input of another kind."""
    messages = getattr(source, "messages", None)
    found = [source, *(messages if isinstance(messages, tuple) else ())]
    given = [images for part in found if isinstance(images := getattr(part, "images", None), tuple)]
    return tuple(one for images in given for one in images if isinstance(one, Image))


def urls_of(images: tuple[Image, ...] | None, param: str = "input.images") -> tuple[tuple[str, str], ...]:
    """Return the URLs that a worker calls, each behind the name of its field."""
    return tuple(
        (f"{param}[{index}]", image.server_url)
        for index, image in enumerate(images or ())
        if image.server_url is not None
    )


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

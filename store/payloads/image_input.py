"""Images as inputs of a job, also in its messages: as a data URL, as the URL of a server, or as an uploaded file.

The bytes of a data URL are a part of the payload, as texts are. A URL and a file are references that the worker reads
(docs/vision.md).
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, WithJsonSchema, model_validator

from headrace.store.payloads.strict_model import Strict

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


Images = Annotated[
    tuple[Annotated[Image, WithJsonSchema(_FORMS)], ...],
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

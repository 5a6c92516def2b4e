"""Orders of diffusion models: what those of pictures and of videos share, those of pictures, and what they cost."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, FiniteFloat, PrivateAttr

from headrace.store.payloads.conversation import AnyImage
from headrace.store.tasks.own_task import OwnTaskSpec, spec_of
from headrace.tasks import Task

MAX_PICTURES: Final = 10
MAX_STEPS: Final = 200
MAX_PIXELS: Final = 2048 * 2048
TOKEN_PIXELS: Final = 256 * 256
"""A step on so many pixels, of a picture or of a frame, is a token."""

MOST_TOKENS: Final = MAX_PICTURES * MAX_STEPS * MAX_PIXELS // TOKEN_PIXELS
SIZE: Final = r"^[1-9][0-9]{1,4}x[1-9][0-9]{1,4}$"
MAX_SEED: Final = 2**32 - 1

MEDIA_TYPES: Final = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

Prompt = Annotated[str, Field(min_length=1, max_length=32_000, description="what is shown")]
Size = Annotated[
    str | None,
    Field(None, pattern=SIZE, description="width x height in pixels, such as `512x768`; by default the model's own"),
]
Steps = Annotated[int | None, Field(None, ge=1, le=MAX_STEPS, description="denoising steps; by default the model's")]
Guidance = Annotated[
    FiniteFloat | None, Field(None, ge=0, le=100, description="how closely the prompt is followed; default the model's")
]
Seed = Annotated[
    int | None,
    Field(None, ge=0, le=MAX_SEED, description="the same seed gives the same bytes; without it one is chosen"),
]
NegativePrompt = Annotated[str | None, Field(None, max_length=32_000, description="what is not shown")]
Format = Literal["png", "jpeg", "webp"]
Quality = Annotated[int | None, Field(None, ge=1, le=100, description="of `jpeg` and `webp`, 95 by default")]
Strength = Annotated[
    FiniteFloat | None, Field(None, gt=0, le=1, description="how much is changed; 1 leaves nothing of the picture")
]


class DiffusionOrder(BaseModel):
    """What is the same for pictures and videos."""

    prompt: Prompt
    negative_prompt: NegativePrompt = None
    size: Size = None
    steps: Steps = None
    guidance: Guidance = None
    seed: Seed = None


class PictureOrder(DiffusionOrder):
    """What is the same for every picture that is made."""

    count: int = Field(1, ge=1, le=MAX_PICTURES, description="how many pictures; each has the next seed")
    format: Format = Field("png", description="of the files")
    quality: Quality = None
    previews: int = Field(0, ge=0, le=3, description="how often `job.progress` has a small `preview` of each picture")


class EditOrder(PictureOrder):
    """A picture that is changed."""

    images: tuple[AnyImage, ...] = Field(
        min_length=1, max_length=1, description='the picture: a data URL, or an uploaded file as `{"file_id": "…"}`'
    )
    mask: AnyImage | None = Field(
        None,
        description="of the picture's size: what is transparent is painted anew; without transparency what is white",
    )
    strength: Strength = None
    _size: tuple[int, int] | None = PrivateAttr(None)

    def with_size(self, size: tuple[int, int]) -> "EditOrder":
        """Return the order with the picture's size, once its header was read."""
        found = self.model_copy()
        found._size = size  # noqa: SLF001 - a copy of this order
        return found

    @property
    def picture_size(self) -> tuple[int, int] | None:
        """Width and height of the picture, once its header was read."""
        return self._size


class PictureOutput(BaseModel):
    """What was made, beside the files."""

    size: str = Field(description="width x height")
    steps: int = Field(description="of each picture")
    seeds: tuple[int, ...] = Field(description="of each picture, in the order of the files")


def size_of(text: str | None) -> tuple[int, int] | None:
    """Return width and height."""
    if text is None or not re.fullmatch(SIZE, text):
        return None
    width, _, height = text.partition("x")
    return int(width), int(height)


def tokens_of(order: Any) -> int:
    """Return the cost of an order that is filled in: of all its pictures, or of all frames."""
    width, height = size_of(order.size) or (512, 512)
    many = order.count if isinstance(order, PictureOrder) else order.frames or 1
    return -(-many * (order.steps or 1) * width * height // TOKEN_PIXELS)


def diffusion_spec(
    name: str, order: type[DiffusionOrder], output: type[BaseModel], example: Mapping[str, Any], most: int, **own: Any
) -> OwnTaskSpec:
    """Return the task of such orders, whose example is small. ``most``: tokens. ``own``: changes of the description."""
    task = Task(
        name=name,
        input=order,
        output=output,
        runner="",  # the task's ModelPart loads it
        example={"steps": 2, "seed": 7, **example},
        count_tokens=tokens_of,
        most_tokens=most,
        output_texts=(),
        with_context=True,
    )
    return replace(spec_of(task), cost_is_time=True, **own)

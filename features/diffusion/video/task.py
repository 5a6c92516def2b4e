"""The task ``video_generate``: a prompt in, a video out, as a file of the result."""

from dataclasses import replace
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, FiniteFloat

from headrace.features.diffusion.pictures import TOKEN_PIXELS, Guidance, NegativePrompt, Seed, Size, Steps, size_of
from headrace.store.tasks.own_task import spec_of
from headrace.tasks import Task

MAX_FRAMES: Final = 512
MAX_FPS: Final = 60
MAX_SECONDS: Final = 60
MAX_VIDEO_PIXELS: Final = 256 << 20
"""Of all frames together: 121 frames of 1920 x 1080, or 257 of 1280 x 720."""

MOST_TOKENS: Final = 200 * MAX_VIDEO_PIXELS // TOKEN_PIXELS

MOST_FORM_BYTES: Final = 512 << 10
"""Of a request: two texts of 32,000 characters of four bytes."""

VideoFormat = Literal["mp4", "webm"]
MEDIA_TYPES: Final = {"mp4": "video/mp4", "webm": "video/webm"}

Prompt = Annotated[str, Field(min_length=1, max_length=32_000, description="what the video shows")]
Frames = Annotated[
    int | None, Field(None, ge=1, le=MAX_FRAMES, description="how many pictures it has; by default the model's")
]
Fps = Annotated[int | None, Field(None, ge=1, le=MAX_FPS, description="frames a second; by default the model's")]
Seconds = Annotated[
    FiniteFloat | None,
    Field(None, gt=0, le=MAX_SECONDS, description="in place of `frames`: the nearest number that the model can make"),
]
Format = Annotated[VideoFormat, Field("mp4", description="`mp4` has H.264, `webm` has VP9")]


class VideoOrder(BaseModel):
    """A video."""

    prompt: Prompt
    negative_prompt: NegativePrompt = None
    size: Size = None
    frames: Frames = None
    fps: Fps = None
    seconds: Seconds = None
    steps: Steps = None
    guidance: Guidance = None
    seed: Seed = None
    format: Format = "mp4"


class VideoOutput(BaseModel):
    """What was made, beside the file."""

    size: str = Field(description="width x height")
    frames: int
    fps: int
    seconds: float
    steps: int
    seed: int


def output_of(order: VideoOrder, size: str, frames: int, steps: int) -> VideoOutput:
    """Return what is said of a video that was made."""
    fps = order.fps or 8
    return VideoOutput(
        size=size, frames=frames, fps=fps, seconds=round(frames / fps, 3), steps=steps, seed=order.seed or 0
    )


def tokens_of(order: VideoOrder) -> int:
    """Return the cost of an order that is filled in: a token for each step on 256 x 256 pixels of a frame."""
    width, height = size_of(order.size) or (512, 512)
    return -(-(order.steps or 1) * (order.frames or 1) * width * height // TOKEN_PIXELS)


VIDEO = Task(
    name="video_generate",
    input=VideoOrder,
    output=VideoOutput,
    runner="headrace.features.diffusion.video.model:load",
    example={"prompt": "a mill by a river", "steps": 2, "seed": 7},
    count_tokens=tokens_of,
    most_tokens=MOST_TOKENS,
    output_texts=(),
    with_context=True,
    summary="Make a video from a prompt",
)

PART = VIDEO_GENERATE = replace(
    spec_of(VIDEO),
    runner="video-pipeline",
    fake_runner="fake-video-pipeline",
    form_bytes=lambda _settings: MOST_FORM_BYTES,
    urls=("/v1/videos",),
    purpose="makes videos: use /v1/videos, or the task video_generate",
    url_example={"prompt": "a mill by a river"},
)

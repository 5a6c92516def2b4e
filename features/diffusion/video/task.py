"""The task ``video_generate``: a prompt in, a video out, as a file of the result."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, FiniteFloat

from headrace.features.diffusion.pictures import TOKEN_PIXELS, DiffusionOrder, diffusion_spec

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

Frames = Annotated[
    int | None, Field(None, ge=1, le=MAX_FRAMES, description="how many pictures it has; by default the model's")
]
Fps = Annotated[int | None, Field(None, ge=1, le=MAX_FPS, description="frames a second; by default the model's")]
Seconds = Annotated[
    FiniteFloat | None,
    Field(None, gt=0, le=MAX_SECONDS, description="in place of `frames`: the nearest number that the model can make"),
]
Format = Annotated[VideoFormat, Field("mp4", description="`mp4` has H.264, `webm` has VP9")]


class VideoOrder(DiffusionOrder):
    """A video."""

    frames: Frames = None
    fps: Fps = None
    seconds: Seconds = None
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


PART = VIDEO_GENERATE = diffusion_spec(
    "video_generate",
    VideoOrder,
    VideoOutput,
    {"prompt": "a mill by a river"},
    MOST_TOKENS,
    runner="video-pipeline",
    fake_runner="fake-video-pipeline",
    form_bytes=lambda _settings: MOST_FORM_BYTES,
    urls=("/v1/videos",),
    purpose="makes videos: use /v1/videos, or the task video_generate",
    url_example={"prompt": "a mill by a river"},
)

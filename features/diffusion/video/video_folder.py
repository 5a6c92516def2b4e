"""What a version that makes videos is: a folder of diffusers, or the address of a server of videos.

model_index.json             the pipeline's class and its parts; weights in safetensors, no pickle, no code
generation_defaults.json     optional: what requests do not say, {"steps": 30, "frames": 81, "fps": 16}

config.json                  of a server: {"model_type": "headrace-video-server", "url": …, "model": …}
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from headrace.features.diffusion.model_folder import (
    DEFAULTS,
    INDEX,
    Defaults,
    MediaServerConfig,
    is_video_pipeline,
    read_model,
)
from headrace.features.diffusion.pictures import size_of
from headrace.features.diffusion.video.task import MAX_FPS, MAX_FRAMES, MAX_VIDEO_PIXELS
from headrace.prompts.folder_json import json_object
from headrace.store.errors import ModelLoadError

SERVER_TYPE: Final = "headrace-video-server"
_ADAPTER: Final = "motion_adapter/config.json"
SMALL_FILES: Final = (INDEX, DEFAULTS, "vae/config.json", "unet/config.json", "transformer/config.json", _ADAPTER)


class VideoDefaults(Defaults):
    """What is done where a request does not say."""

    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None
    fps: Annotated[int, Field(ge=1, le=MAX_FPS)] | None = None


class VideoServer(MediaServerConfig):
    """A server with OpenAI's ``/v1/videos``.

    ``body``: how it reads a request. vLLM-Omni takes forms alone, SGLang JSON alone where no picture is sent.
    """

    model_type: Literal["headrace-video-server"]
    body: Literal["form", "json"] = "form"
    defaults: VideoDefaults = VideoDefaults()


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """Facts of a version. Width and height are multiples of ``multiple``; a video has ``stride`` x n + 1 frames.

    ``most_frames``: what the model was made for. ``server``: None, it runs here.
    """

    width: int
    height: int
    multiple: int
    frames: int
    fps: int
    stride: int
    most_frames: int
    defaults: VideoDefaults
    server: VideoServer | None = None

    def nearest(self, frames: float) -> int:
        """Return the possible number of frames that is next to one."""
        most = (self.most_frames - 1) // self.stride
        return min(max(0, round((frames - 1) / self.stride)), most) * self.stride + 1


FAKE: Final = VideoSettings(64, 64, 16, 9, 8, 4, MAX_FRAMES, VideoDefaults(steps=4))
"""Of the version without weights."""


def makes_videos(config: Mapping[str, Any]) -> bool:
    """Return True for the ``model_index.json`` of a pipeline of videos, and the ``config.json`` of a server."""
    return is_video_pipeline(config) or config.get("model_type") == SERVER_TYPE


def settings_of(files: Mapping[str, bytes]) -> VideoSettings:
    """Return the facts of a folder by its small files. Raises ModelLoadError."""
    config = json_object(files, "config.json") if "config.json" in files else {}
    if config.get("model_type") == SERVER_TYPE:
        server: VideoServer = read_model(VideoServer, config, "config.json")
        found = VideoSettings(832, 480, 1, 81, 16, 1, MAX_FRAMES, server.defaults, server)
        return _with_defaults(found, "config.json")

    def part(name: str) -> dict[str, Any]:
        return json_object(files, name) if name in files else {}

    defaults: VideoDefaults = read_model(VideoDefaults, part(DEFAULTS), DEFAULTS)
    spatial, temporal = _compression(part("vae/config.json"))
    if "transformer/config.json" in files:
        patch = part("transformer/config.json").get("patch_size") or 1
        multiple = max(16, spatial * int(max(patch) if isinstance(patch, list) else patch))
        found = VideoSettings(832, 480, multiple, 81, 16, temporal, MAX_FRAMES, defaults)
    else:
        multiple, edge = max(8, spatial), int(part("unet/config.json").get("sample_size") or 64) * spatial
        most = int(part(_ADAPTER).get("motion_max_seq_length") or MAX_FRAMES)
        found = VideoSettings(edge, edge, multiple, 16, 8, temporal, most, defaults)
    return _with_defaults(found, DEFAULTS)


def _compression(vae: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many pixels of a frame's edge, and how many frames, are one of a latent."""
    halves = vae.get("temperal_downsample") or ()  # so it is spelled in diffusers
    scaling = vae.get("spatio_temporal_scaling") or ()
    scaling = scaling if isinstance(scaling, list) else ()
    spatial = (
        vae.get("scale_factor_spatial")
        or vae.get("spatial_compression_ratio")
        or (2 ** len(halves) if halves else 0)
        or (2 ** sum(scaling) * int(vae.get("patch_size") or 1) if scaling else 0)
        or 2 ** max(0, len(vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or ()) - 1)
    )
    temporal = (
        vae.get("scale_factor_temporal")
        or vae.get("temporal_compression_ratio")
        or (2 ** sum(halves) if halves else 0)
        or (2 ** sum(scaling) * int(vae.get("patch_size_t") or 1) if scaling else 0)
        or prod(vae.get("temporal_expansions") or ())
    )
    return int(spatial), int(temporal)


def _with_defaults(found: VideoSettings, name: str) -> VideoSettings:
    """Return the facts with the operator's size, frames and rate. Raises ModelLoadError if they are not possible."""
    defaults = found.defaults
    width, height = size_of(defaults.size) or (
        _rounded(found.width, found.multiple),
        _rounded(found.height, found.multiple),
    )
    frames = defaults.frames or found.nearest(found.frames)
    if width % found.multiple or height % found.multiple or found.nearest(frames) != frames:
        raise ModelLoadError(
            f"{name}: the size {width}x{height} must be of multiples of {found.multiple}, and the frames {frames} one "
            f"more than a multiple of {found.stride}, at most {found.most_frames}"
        )
    if width * height * frames > MAX_VIDEO_PIXELS:
        raise ModelLoadError(f"{name}: {frames} frames of {width}x{height} are over {MAX_VIDEO_PIXELS} pixels")
    return replace(found, width=width, height=height, frames=frames, fps=defaults.fps or found.fps)


def _rounded(edge: int, multiple: int) -> int:
    return max(1, edge // multiple) * multiple

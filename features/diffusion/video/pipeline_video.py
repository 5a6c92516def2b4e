"""Videos by the pipelines of diffusers that make them from a prompt."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import diffusers
import numpy as np
import torch

from headrace.features.diffusion.denoising import Denoising
from headrace.features.diffusion.pipeline_painter import arguments_of, loaded
from headrace.features.diffusion.steps import OnStep
from headrace.features.diffusion.video.task import VideoOrder
from headrace.features.diffusion.video.video_work import Frame
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings
from headrace.tasks import TaskError

_FRAMES: Final = ("num_frames", "video_length")


def load_video_pipeline(folder: Path, settings: Settings) -> "PipelineVideo":
    """Load the pipeline of a folder to the device of the settings. Raises ModelLoadError."""
    pipeline = loaded(diffusers.DiffusionPipeline, folder, settings)
    takes = inspect.signature(pipeline.__call__).parameters
    name = type(pipeline).__name__
    if not any(one in takes for one in _FRAMES):
        raise ModelLoadError(f"{name} makes no videos from a prompt")
    needed = [one for one, about in takes.items() if about.default is about.empty and about.kind.name != "VAR_KEYWORD"]
    if more := sorted(set(needed) - {"prompt"}):
        raise ModelLoadError(
            f"{name} needs {', '.join(more)} beside the prompt: here videos are made from a prompt alone"
        )
    denoising = Denoising(pipeline)
    denoising.check()
    return PipelineVideo(denoising)


class PipelineVideo:
    """A ``VideoMaker``. One thread at a time calls it."""

    def __init__(self, denoising: Denoising) -> None:
        self._denoising = denoising

    def make(self, order: VideoOrder, on_step: OnStep, resumed: bytes | None) -> Sequence[Frame]:
        """See ``VideoMaker``."""
        # On the CPU, so that the noise is the same on every device.
        generator = torch.Generator().manual_seed(order.seed or 0)
        # Some models are told how fast things move.
        own = {**dict.fromkeys(_FRAMES, order.frames), "frame_rate": order.fps, "fps": order.fps, "output_type": "np"}
        arguments = arguments_of(self._denoising.pipeline, order, own)
        found = self._denoising.run(arguments, generator, on_step, resumed)
        frames = np.asarray(found.frames[0])
        if not np.isfinite(frames).all():
            raise TaskError("the model computed numbers that are not finite")
        return [*(frames.clip(0, 1) * 255).round().astype(np.uint8)]

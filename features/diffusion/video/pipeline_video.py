"""Videos by the pipelines of diffusers that make them from a prompt."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import diffusers
import numpy as np
import torch

from headrace.features.diffusion.denoising import Denoising, Step
from headrace.features.diffusion.pictures import size_of
from headrace.features.diffusion.pipeline_painter import loaded
from headrace.features.diffusion.video.task import VideoOrder
from headrace.features.diffusion.video.video_work import Frame, OnStep, VideoStep
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
        self._saves: bool | None = None

    def make(self, order: VideoOrder, on_step: OnStep, resumed: bytes | None) -> Sequence[Frame]:
        """See ``VideoMaker``."""
        # On the CPU, so that the noise is the same on every device.
        generator = torch.Generator().manual_seed(order.seed or 0)

        def ended(step: Step) -> None:
            if self._saves is None:  # a scheduler may get values at its first step
                self._saves = self._denoising.can_save()
            on_step(VideoStep(step.done, step.total, step.save if self._saves else None))

        found = self._denoising.run(self._arguments(order), generator, ended, resumed)
        frames = np.asarray(found.frames[0])
        if not np.isfinite(frames).all():
            raise TaskError("the model computed numbers that are not finite")
        return [*(frames.clip(0, 1) * 255).round().astype(np.uint8)]

    def _arguments(self, order: VideoOrder) -> dict[str, Any]:
        pipeline = self._denoising.pipeline
        takes = inspect.signature(pipeline.__call__).parameters
        width, height = size_of(order.size) or (None, None)
        given = {
            "prompt": order.prompt,
            "negative_prompt": order.negative_prompt,
            "num_inference_steps": order.steps,
            "guidance_scale": order.guidance,
            "width": width,
            "height": height,
            **dict.fromkeys(_FRAMES, order.frames),
            # Some models are told how fast things move.
            "frame_rate": order.fps,
            "fps": order.fps,
            "output_type": "np",
        }
        known = {name: value for name, value in given.items() if value is not None}
        if "negative_prompt" in known and "negative_prompt" not in takes:
            raise TaskError(f"a model of {type(pipeline).__name__} takes no negative prompt: leave it out")
        return {name: value for name, value in known.items() if name in takes}

"""What loads the models of video_generate: a pipeline, a server, or one without weights."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from headrace.features.diffusion.generate.model import PictureModel
from headrace.features.diffusion.model_folder import check_folder
from headrace.features.diffusion.video.inputs import PART as INPUTS
from headrace.features.diffusion.video.task import VIDEO_GENERATE
from headrace.features.diffusion.video.video_folder import FAKE, VideoSettings
from headrace.features.diffusion.video.video_server import SERVER_TIMEOUT_S, server_runner
from headrace.models.loading.load import checked_folder, with_encoder_faults
from headrace.models.runners.own_runner import OwnRunner
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.errors import CannotLoadHere
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers.tasks.task_model import ModelPart

_TRIED_EDGE: Final = 64
_TRIED_FRAMES: Final = 17
"""Of a server: most models make 4 n + 1 or 8 n + 1 frames."""


@dataclass(frozen=True, slots=True)
class VideoModel(PictureModel):
    """A version that makes videos."""

    facts: VideoSettings = FAKE

    @property
    def example(self) -> Mapping[str, Any]:
        """The example of the task, as small as the model can make it: a video of the usual size takes minutes."""
        facts = self.facts
        edge = -(-_TRIED_EDGE // facts.multiple) * facts.multiple
        size = f"{edge}x{edge}" if facts.server is None else f"{facts.width}x{facts.height}"
        frames = facts.stride + 1 if facts.server is None else _TRIED_FRAMES
        return {"input": {**VIDEO_GENERATE.declared.example, "size": size, "frames": frames, "fps": facts.fps}}


def load_video_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> VideoModel:
    """Load a version. Raises ModelLoadError."""
    facts = INPUTS.read_settings(version, read_file)
    server = facts.server
    runner = _runner(version, settings) if server is None else server_runner(server, settings)
    encoder = with_encoder_faults(OwnRunner(VIDEO_GENERATE.declared, runner), settings, lambda _row: "")
    timeout_s = None if server is None else SERVER_TIMEOUT_S
    return VideoModel(version, encoder, VIDEO_GENERATE, (), timeout_s, facts)


def _runner(version: ModelVersion, settings: Settings) -> Callable[..., Any]:
    try:
        from headrace.features.diffusion.video.video_work import FakeVideoMaker, making  # noqa: PLC0415 - an extra

        if version.is_fake:
            return making(FakeVideoMaker(partial(time.sleep, settings.fake_step_ms / 1000)))
        folder = checked_folder(version)
        check_folder(folder)
        from headrace.features.diffusion.video.pipeline_video import load_video_pipeline  # noqa: PLC0415 - and torch
    except ModuleNotFoundError as error:
        raise CannotLoadHere(f"{error.name} is not installed: install Headrace with the extra `diffusion`") from error
    return making(load_video_pipeline(folder, settings))


PART = ModelPart(VIDEO_GENERATE, load_video_model)

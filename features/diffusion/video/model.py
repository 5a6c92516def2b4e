"""What loads the models of video_generate: a pipeline, a server, or one without weights."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from headrace.features.diffusion.generate.model import PictureModel
from headrace.features.diffusion.model_folder import check_folder
from headrace.features.diffusion.video.task import VIDEO, VIDEO_GENERATE
from headrace.features.diffusion.video.video_folder import settings_for
from headrace.features.diffusion.video.video_server import SERVER_TIMEOUT_S, server_runner
from headrace.models.loading.load import checked_folder, with_encoder_faults
from headrace.models.runners.own_runner import OwnRunner
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.errors import CannotLoadHere
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers.tasks.task_model import ModelPart


def load_video_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> PictureModel:
    """Load a version. Raises ModelLoadError."""
    server = settings_for(version, read_file).server
    runner = _runner(version, settings) if server is None else server_runner(server, settings)
    encoder = with_encoder_faults(OwnRunner(VIDEO, runner), settings, lambda _row: "")
    return PictureModel(version, encoder, VIDEO_GENERATE, (), None if server is None else SERVER_TIMEOUT_S)


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

"""What loads the models of image_generate, which run image_edit too: a pipeline, a server, or one without weights."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from headrace.features.diffusion.edit.task import IMAGE_EDIT
from headrace.features.diffusion.fake_painter import FakePainter
from headrace.features.diffusion.generate.inputs import PART as INPUTS
from headrace.features.diffusion.generate.task import IMAGE_GENERATE
from headrace.features.diffusion.image_server import SERVER_TIMEOUT_S, server_runner
from headrace.features.diffusion.model_folder import check_folder
from headrace.features.diffusion.picture_work import painting
from headrace.models.engine.call_engine import CallEngine
from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.loading.load import checked_folder, with_encoder_faults
from headrace.models.runners.own_runner import OwnRunner
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.errors import CannotLoadHere
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import new_call_engine
from headrace.workers.tasks.own_task import OwnModel
from headrace.workers.tasks.task_model import EngineSetup, ModelPart


class OneByOne(EncodeEngine):
    """An engine for inputs that take seconds or minutes each. One is computed, the next one is here already."""

    def _has_capacity(self, num_prompt: int, _max_tokens: int, count: int, *, is_ahead: bool) -> bool:
        return is_ahead or len(self._active) + count <= 2


@dataclass(frozen=True, slots=True)
class PictureModel(OwnModel):
    """A version that makes pictures or videos. ``server_timeout_s``: None, it runs here."""

    server_timeout_s: float | None = None

    def new_engine(self, setup: EngineSetup) -> EncodeEngine | CallEngine:
        """Return an engine that computes one order after another, or asks the server for several at once."""
        if self.server_timeout_s is not None:
            return new_call_engine(self.encoder, setup, self.server_timeout_s)
        config = EncodeConfig(setup.num_slots, 1, inf)
        return OneByOne(self.encoder, config, on_room=setup.on_room, on_failed=setup.on_failed)


def load_picture_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> PictureModel:
    """Load a version. Raises ModelLoadError."""
    server = INPUTS.read_settings(version, read_file).server
    runner = _runner(version, settings) if server is None else server_runner(server, settings)
    encoder = with_encoder_faults(OwnRunner(IMAGE_GENERATE.declared, runner), settings, lambda _row: "")
    return PictureModel(version, encoder, IMAGE_GENERATE, (IMAGE_EDIT,), None if server is None else SERVER_TIMEOUT_S)


def _runner(version: ModelVersion, settings: Settings) -> Callable[..., Any]:
    if version.is_fake:
        return painting(FakePainter(settings.fake_step_ms / 1000))
    folder = checked_folder(version)
    check_folder(folder)
    try:
        from headrace.features.diffusion.pipeline_painter import load_pipeline  # noqa: PLC0415 - an extra, and torch
    except ModuleNotFoundError as error:
        raise CannotLoadHere(f"{error.name} is not installed: install Headrace with the extra `diffusion`") from error
    return painting(load_pipeline(folder, settings))


PART = ModelPart(IMAGE_GENERATE, load_picture_model)

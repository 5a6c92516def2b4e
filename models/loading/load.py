"""From a registered version to a runner that is ready: the one door to the weights.

Whatever is wrong with a model is a ModelLoadError of one sentence. Torch is imported only for a version that needs it.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from models.engine.runner import Encoder, Runner
from models.families.model_folder import registered_folder
from models.runners.fake import FakeRunner
from models.runners.fake_encoder import FakeEncoder
from models.runners.faults import Fault, FaultyEncoder, FaultyRunner
from store.failpoints import failpoint, parse_model_faults
from store.registry.models import ModelVersion
from store.settings import Settings


def load_runner(version: ModelVersion, settings: Settings) -> Runner:
    """Return the runner of a version, its weights checked against the registered digest and read.

    Raises ModelLoadError if the folder is missing, damaged, changed since it was registered, or not supported.
    """
    if version.is_fake:
        return FakeRunner(
            num_blocks=_num_fake_blocks(settings),
            block_tokens=settings.kv_block_tokens,
            context_window=version.context_window,
            step_s=settings.fake_step_ms / 1000,
        )
    _calm_openmp()
    from models.loading.torch_load import load_torch  # noqa: PLC0415 - a worker of the fake has no torch

    return load_torch(version, settings)


def load_encoder(version: ModelVersion, settings: Settings) -> Encoder:
    """Return the encoder of a version, as ``load_runner`` does a runner. Raises ModelLoadError."""
    if version.is_fake:
        return FakeEncoder(step_s=settings.fake_step_ms / 1000)
    folder = checked_folder(version)
    from models.runners.encoder import encoder_for  # noqa: PLC0415 - as above

    return encoder_for(folder, settings, dtype=version.dtype)


def checked_folder(version: ModelVersion) -> Path:
    """Return a version's folder before torch is imported to read it. Raises ModelLoadError as ``load_runner``."""
    _calm_openmp()
    return registered_folder(version)


def _num_fake_blocks(settings: Settings) -> int:
    """The fake's pool costs next to nothing; it has the default size where it is to be chosen."""
    default: int = Settings.model_fields["kv_pool_tokens"].default
    tokens = default if settings.kv_pool_tokens == "auto" else settings.kv_pool_tokens
    return tokens // settings.kv_block_tokens


def _calm_openmp() -> None:
    """Let OpenMP's threads sleep when they have waited for some tens of microseconds, unless somebody set it otherwise.

    Before torch is imported, when GNU's library reads it. By default they spin for milliseconds, which takes the CPU
    from the other threads and processes of a machine, and from the thread that is waited for.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # noqa: TID251 - another library's setting, not one of ours


def with_faults(runner: Runner, settings: Settings, decode: Callable[[Sequence[int]], str]) -> Runner:
    """Return ``runner``, or one around it that fails where a test's settings ask for it; ``decode`` reads a prompt."""
    if not (settings.model_faults or settings.failpoints):
        return runner
    return FaultyRunner(runner, _marks(settings), decode=decode, midway=partial(failpoint, "batch.midway"))


def with_encoder_faults(encoder: Encoder, settings: Settings, decode: Callable[[Sequence[int]], str]) -> Encoder:
    """Return ``encoder``, or one around it that fails, as ``with_faults``."""
    if not (settings.model_faults or settings.failpoints):
        return encoder
    return FaultyEncoder(encoder, _marks(settings), decode=decode, midway=partial(failpoint, "batch.midway"))


def _marks(settings: Settings) -> dict[str, Fault]:
    return {fault.mark: Fault(fault.kind) for fault in parse_model_faults(settings.model_faults)}

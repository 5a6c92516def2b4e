"""Loads a registered model version into a runner or an encoder. Workers load models only through this module.

Every fault of a model is a ModelLoadError of one sentence. Torch is imported only for a version that needs it.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from headrace.models.engine.requests import Adapter
from headrace.models.engine.runner import Encoder, Runner
from headrace.models.fakes.fake import FakeRunner
from headrace.models.fakes.faults import Fault, FaultyEncoder, FaultyRunner
from headrace.models.families.model_folder import registered_folder
from headrace.store.failpoints import failpoint, parse_model_faults
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings


def load_runner(version: ModelVersion, settings: Settings) -> Runner:
    """Return the runner of a version. Checks the files against the registered digest and reads the weights.

    Raises ModelLoadError if the folder is missing, damaged, changed since it was registered, or not supported.
    """
    if version.is_fake:
        return FakeRunner(
            num_blocks=_num_fake_blocks(settings),
            block_tokens=settings.kv_block_tokens,
            context_window=version.context_window,
            step_s=settings.fake_step_ms / 1000,
        )
    _limit_openmp_spinning()
    from headrace.models.loading.torch_load import load_torch  # noqa: PLC0415 - a worker of the fake has no torch

    return load_torch(version, settings)


def adapter_loader(runner: Runner, base: ModelVersion) -> Callable[[ModelVersion], Adapter] | None:
    """Return what loads the LoRA adapters of a version for its runner, or None if the model runs none.

    It may be called beside a running step. It raises ModelLoadError.
    """
    if base.is_fake:
        return None
    from headrace.models.loading.adapters import base_architecture, load_adapter  # noqa: PLC0415 - imports torch
    from headrace.models.runners.torch_runner import TorchRunner  # noqa: PLC0415 - imports torch

    folder = Path(base.source)
    architecture = base_architecture(folder)
    if not isinstance(runner, TorchRunner) or not architecture.family.adaptable(architecture.config):
        return None
    return lambda version: load_adapter(runner, Path(version.source), base=folder, digest=version.digest)


def check_adapter(version: ModelVersion) -> None:
    """Raise ModelLoadError unless the files of an adapter are on this machine and are those that were registered."""
    from headrace.models.loading.adapters import check_files  # noqa: PLC0415 - imports torch

    check_files(Path(version.source), version.digest)


def number_format(version: ModelVersion, settings: Settings) -> str:
    """Return the number format in which a worker computes the version, such as ``bfloat16``. Imports torch."""
    _limit_openmp_spinning()
    from headrace.models.tensors.precision import resolve_device, resolve_dtype  # noqa: PLC0415 - imports torch

    name = settings.dtype if version.dtype == "auto" else version.dtype
    if name == "auto" and not version.spec.has_sampling:
        return "float32"  # encoders
    return str(resolve_dtype(name, resolve_device(settings.device))).removeprefix("torch.")


def checked_folder(version: ModelVersion) -> Path:
    """Return the folder of a version, before torch is imported. Raises ModelLoadError as ``load_runner``."""
    _limit_openmp_spinning()
    return registered_folder(version)


def _num_fake_blocks(settings: Settings) -> int:
    """Return the number of KV blocks of the fake model. ``auto`` is the default size, because they cost little."""
    default: int = Settings.model_fields["kv_pool_tokens"].default
    tokens = default if settings.kv_pool_tokens == "auto" else settings.kv_pool_tokens
    return tokens // settings.kv_block_tokens


def _limit_openmp_spinning() -> None:
    """Let OpenMP threads sleep after some tens of microseconds of waiting, unless GOMP_SPINCOUNT is set already.

    Must run before torch is imported, because GNU's OpenMP reads it then. By default, OpenMP threads spin for
    milliseconds and take CPU time from other threads, including the thread that they wait for.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # noqa: TID251 - a setting of another library


def with_faults(runner: Runner, settings: Settings, decode: Callable[[Sequence[int]], str]) -> Runner:
    """Return ``runner``, with faults if the settings of a test enable them. ``decode`` turns a prompt into text."""
    if not (settings.model_faults or settings.failpoints):
        return runner
    return FaultyRunner(runner, _marks(settings), decode=decode, midway=partial(failpoint, "batch.midway"))


def with_encoder_faults(encoder: Encoder, settings: Settings, decode: Callable[[Sequence[int]], str]) -> Encoder:
    """Return ``encoder``, wrapped with faults if the settings enable them. As ``with_faults``."""
    if not (settings.model_faults or settings.failpoints):
        return encoder
    return FaultyEncoder(encoder, _marks(settings), decode=decode, midway=partial(failpoint, "batch.midway"))


def _marks(settings: Settings) -> dict[str, Fault]:
    return {fault.mark: Fault(fault.kind) for fault in parse_model_faults(settings.model_faults)}

"""Decide if the CPU kernels run a model. If not, the family's torch code runs it, and the reason is logged."""

import logging
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from headrace.models.families.model import ModelWithCache
from headrace.models.families.model_config import ModelConfig
from headrace.models.families.registry import Architecture
from headrace.models.native.build import BuildFailed, build
from headrace.models.native.layout import PAGE
from headrace.models.native.library import Kernels
from headrace.store.settings import Settings

log = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
_MAX_HEAD_DIM = 256


class NativeFamily(Protocol):
    """The interface of a module that loads one family for the CPU kernels (``Family.NATIVE``)."""

    def load(
        self,
        kernels: Kernels,
        config: Any,
        folder: Path,
        *,
        num_blocks: int,
        block_tokens: int,
        context: int,
        dtype: torch.dtype,
    ) -> ModelWithCache:
        """Read and pack the weights in ``folder``, and return the model with its KV cache. Raises ModelLoadError."""
        ...


def native_loader(
    architecture: Architecture, settings: Settings, dtype: torch.dtype, device: torch.device
) -> Callable[..., ModelWithCache] | None:
    """Return ``NativeFamily.load`` for this model, with the arguments that are known here, or None.

    The caller gives ``folder``, ``num_blocks`` and ``context``.
    """
    config, module = architecture.config, architecture.family.NATIVE
    if device.type != "cpu" or settings.native_kernels == "off" or module is None:
        return None
    if dtype not in _DTYPES:
        log.warning("kernels_unused reason=%s", f"they do not support {dtype}")
        return None
    if not supports(config, settings.kv_block_tokens):
        log.warning("kernels_unused reason=%s", f"head_dim {config.head_dim}, blocks of {settings.kv_block_tokens}")
        return None
    try:
        kernels = _kernels((settings.home / "native").resolve())
    except BuildFailed as error:
        log.warning("kernels_unused reason=%s", error)
        return None
    log.info("kernels_used for=%s", kernels.isa)
    family = cast(NativeFamily, import_module(module))
    return partial(family.load, kernels, config, block_tokens=settings.kv_block_tokens, dtype=dtype)


def supports(config: ModelConfig, block_tokens: int) -> bool:
    """Return True if the kernels support this head size and block size."""
    head_dim = config.head_dim
    return block_tokens % PAGE == 0 and head_dim % (2 * PAGE) == 0 and head_dim <= _MAX_HEAD_DIM


@cache
def _kernels(folder: Path) -> Kernels:
    path = build(folder)
    try:
        return Kernels(path)
    except (OSError, AttributeError) as error:
        raise BuildFailed(f"{path} cannot be used: {error}") from error

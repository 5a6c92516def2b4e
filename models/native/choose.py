"""Whether the kernels run a model here: they are there, switched on, and cover it. Else torch does, and says so."""

import logging
from functools import cache
from pathlib import Path

import torch

from models.families.config import LlamaConfig
from models.families.geometry import Geometry
from models.native.build import BuildFailed, build
from models.native.layout import PAGE
from models.native.library import Kernels
from store.settings import Settings

log = logging.getLogger(__name__)

_FORMATS = (torch.float32, torch.bfloat16, torch.int8)
_MOST_HEAD_DIM = 256


def kernels_for(config: Geometry, settings: Settings, dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """Return the kernels if they are to run this model, else None; what is in their way is logged."""
    if device.type != "cpu" or settings.native_kernels == "off" or not isinstance(config, LlamaConfig):
        return None
    if dtype not in _FORMATS:
        log.warning("kernels_unused reason=%s", f"they know no {dtype}")
        return None
    if not covers(config, settings.kv_block_tokens):
        log.warning("kernels_unused reason=%s", f"head_dim {config.head_dim}, blocks of {settings.kv_block_tokens}")
        return None
    try:
        kernels = _kernels((settings.home / "native").resolve())
    except BuildFailed as error:
        log.warning("kernels_unused reason=%s", error)
        return None
    log.info("kernels_used for=%s", kernels.kind)
    return kernels


def covers(config: Geometry, block_tokens: int) -> bool:
    """Return True if the kernels' pages and vectors fit these sizes."""
    head_dim = config.head_dim
    return block_tokens % PAGE == 0 and head_dim % (2 * PAGE) == 0 and head_dim <= _MOST_HEAD_DIM


@cache
def _kernels(folder: Path) -> Kernels:
    path = build(folder)
    try:
        return Kernels(path)
    except (OSError, AttributeError) as error:
        raise BuildFailed(f"{path} cannot be used: {error}") from error

"""How many KV blocks a model gets: as many as the setting says, or a share of the memory that is free when it loads.

    free memory = | weights | headroom | share ▸ the pool | the rest ▸ everybody else |

The weights are counted before they are read: a pool is sized once, and what it may hold bounds the context.
"""

import logging
from pathlib import Path

import torch

from models.families.geometry import Geometry
from models.families.model_folder import weight_files
from models.loading.host_memory import free_bytes
from models.tensors.precision import activation_dtype
from store.errors import ModelLoadError
from store.settings import Settings

log = logging.getLogger(__name__)

HEADROOM = 512 << 20
"""Bytes for what a step needs beside weights and cache: activations, logits, the interpreter."""

SHARES = {"cpu": 0.5, "cuda": 0.9}
"""Of what is left after weights and headroom. A machine's memory has other users, a device's usually has none."""


def num_blocks(folder: Path, config: Geometry, settings: Settings, dtype: torch.dtype, device: torch.device) -> int:
    """Return the size of the pool for the model in ``folder`` with weights of ``dtype``.

    Raises ModelLoadError if the setting is ``auto`` and too little memory is free, or it is not known how much is.
    """
    if settings.kv_pool_tokens != "auto":
        return settings.kv_pool_tokens // settings.kv_block_tokens
    free = _free(device)
    if free is None:
        raise ModelLoadError("how much memory is free is not known here; set HEADRACE_KV_POOL_TOKENS to a number")
    left = free - _weight_bytes(folder, dtype) - HEADROOM
    block_bytes = settings.kv_block_tokens * token_bytes(config, dtype)
    # More than every slot can fill with a whole context serves nobody.
    most = -(-config.context_window // settings.kv_block_tokens) * settings.max_slots
    found = min(most, int(left * SHARES.get(device.type, 0.5)) // block_bytes)
    if found < 1:
        raise ModelLoadError(f"{folder}: {free >> 20} MiB are free on {device}, too little for weights and KV cache")
    log.info("kv_pool_sized blocks=%d bytes=%d free_bytes=%d", found, found * block_bytes, free)
    return found


def token_bytes(config: Geometry, dtype: torch.dtype) -> int:
    """Return how many bytes the keys and values of one token take, beside weights of ``dtype``."""
    return config.num_layers * 2 * config.num_kv_heads * config.head_dim * activation_dtype(dtype).itemsize


def _free(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes()


def _weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return what the weights may take: the files, twice that where they are made wider than two bytes."""
    return sum(path.stat().st_size for path in weight_files(folder)) * max(2, dtype.itemsize) // 2

"""The number of KV blocks of a model: the setting, or a share of the memory that is free when the model is loaded.

    free memory = | weights | headroom | share ▸ KV blocks | rest ▸ other processes |

The size of the weights is estimated before they are read, because the number of blocks limits the context window.
"""

import logging
from pathlib import Path

import torch

from models.families.model_config import ModelConfig
from models.families.model_folder import weight_files
from models.loading.host_memory import free_bytes
from models.tensors.precision import activation_dtype
from store.errors import ModelLoadError
from store.settings import Settings

log = logging.getLogger(__name__)

HEADROOM = 512 << 20
"""Bytes for the memory of a step beside weights and KV cache: activations, logits, the interpreter."""

SHARES = {"cpu": 0.5, "cuda": 0.9}
"""The share of the memory left after weights and headroom. Other processes use host memory, rarely GPU memory."""


def num_blocks(folder: Path, config: ModelConfig, settings: Settings, dtype: torch.dtype, device: torch.device) -> int:
    """Return the number of KV blocks for the model in ``folder`` with weights of ``dtype``.

    Raises ModelLoadError if the setting is ``auto`` and too little memory is free, or the free memory is not known.
    """
    if settings.kv_pool_tokens != "auto":
        return settings.kv_pool_tokens // settings.kv_block_tokens
    free = _free(device)
    if free is None:
        raise ModelLoadError("how much memory is free is not known here; set HEADRACE_KV_POOL_TOKENS to a number")
    left = free - _weight_bytes(folder, dtype) - HEADROOM
    block_bytes = settings.kv_block_tokens * token_bytes(config, dtype)
    # More blocks than all slots with a full context are never used.
    most = -(-config.context_window // settings.kv_block_tokens) * settings.max_slots
    found = min(most, int(left * SHARES.get(device.type, 0.5)) // block_bytes)
    if found < 1:
        raise ModelLoadError(f"{folder}: {free >> 20} MiB are free on {device}, too little for weights and KV cache")
    log.info("kv_pool_sized blocks=%d bytes=%d free_bytes=%d", found, found * block_bytes, free)
    return found


def token_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of the keys and values of one token, if the weights have ``dtype``."""
    return config.num_layers * 2 * config.num_kv_heads * config.head_dim * activation_dtype(dtype).itemsize


def _free(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes()


def _weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return an upper estimate of the weights in memory: the file size, doubled for formats wider than two bytes."""
    return sum(path.stat().st_size for path in weight_files(folder)) * max(2, dtype.itemsize) // 2

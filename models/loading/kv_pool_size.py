"""The number of KV blocks of a model: the setting, or a share of the memory that is free when the model is loaded.

    a CPU's free memory = | weights | headroom | half ▸ KV blocks | rest ▸ other processes |
    a GPU's memory      = | in use after the weights and a pass | KV blocks | 1 - HEADRACE_GPU_MEMORY_SHARE ▸ free |

On a CPU the size of the weights is estimated before they are read, because the number of blocks limits the context
window. On a GPU the memory is measured after the weights and the largest pass.
"""

import logging
from pathlib import Path

import torch

from headrace.models.families.model_config import ModelConfig
from headrace.models.families.model_folder import weight_files
from headrace.models.loading.host_memory import free_bytes
from headrace.models.tensors.precision import activation_dtype
from headrace.store.errors import CannotLoadHere
from headrace.store.settings import Settings

log = logging.getLogger(__name__)

HEADROOM = 512 << 20
"""Bytes for the memory of a step beside weights and KV cache: activations, logits, the interpreter."""

SHARE = 0.5
"""The share of the memory left after weights and headroom. Other processes use host memory too."""

GPU_SLOTS = 256
"""The most requests that run together on a GPU, if the settings say nothing."""

_SLOT_TOKENS = 512
"""A GPU gets a slot for each of so many tokens of its pool: the length of a common request."""


def num_blocks(folder: Path, config: ModelConfig, settings: Settings, dtype: torch.dtype) -> int:
    """Return the number of KV blocks on a CPU for the model in ``folder`` with weights of ``dtype``.

    Raises ModelLoadError if the setting is ``auto`` and too little memory is free, or the free memory is not known.
    """
    if settings.kv_pool_tokens != "auto":
        return settings.kv_pool_tokens // settings.kv_block_tokens
    free = free_bytes()
    if free is None:
        raise CannotLoadHere("how much memory is free is not known here; set HEADRACE_KV_POOL_TOKENS to a number")
    left = free - _weight_bytes(folder, dtype) - HEADROOM
    block_bytes = settings.kv_block_tokens * token_bytes(config, dtype)
    # More blocks than all slots with a full context are never used.
    most = -(-config.context_window // settings.kv_block_tokens) * settings.max_slots
    found = min(most, int(left * SHARE) // block_bytes)
    if found < 1:
        raise CannotLoadHere(f"{folder}: {free >> 20} MiB are free on cpu, too little for weights and KV cache")
    log.info("kv_pool_sized blocks=%d bytes=%d free_bytes=%d", found, found * block_bytes, free)
    return found


def gpu_blocks(free: int, total: int, *, share: float, block_bytes: int, context_blocks: int, slots: int) -> int:
    """Return the number of KV blocks on a GPU of ``total`` bytes, of which ``free`` are left beside weights and a pass.

    ``context_blocks`` is a full context window. 0 if the memory is too small for one block.
    """
    pool_bytes = free - int(total * (1 - share))
    return max(0, min(context_blocks * slots, pool_bytes // block_bytes))


def gpu_slots(pool_tokens: int, context_window: int) -> int:
    """Return how many requests run together on a GPU with a pool of so many tokens."""
    return max(1, min(GPU_SLOTS, pool_tokens // min(_SLOT_TOKENS, context_window)))


def token_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of the keys and values of one token, if the weights have ``dtype``."""
    return config.num_layers * 2 * config.num_kv_heads * config.head_dim * activation_dtype(dtype).itemsize


def _weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return an upper estimate of the weights in memory: the file size, doubled for formats wider than two bytes."""
    return sum(path.stat().st_size for path in weight_files(folder)) * max(2, dtype.itemsize) // 2

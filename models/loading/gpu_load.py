"""Load a model folder into a DeviceRunner: weights, the attention that works here, a KV pool by free memory, graphs.

Only ``cuda_memory`` and the recording of graphs need a GPU, so that tests run the rest on CPU tensors.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from headrace.models.engine.requests import EngineRequest, SamplingParams
from headrace.models.engine.runner import Row, StepPlan
from headrace.models.families.llama_torch import LlamaModel
from headrace.models.families.model import CausalModel, ModelWithCache
from headrace.models.families.model_config import ModelConfig
from headrace.models.families.registry import Architecture
from headrace.models.loading.kv_pool_size import GPU_SLOTS, gpu_blocks, gpu_slots, token_bytes
from headrace.models.runners.decode_graphs import CudaRecorder, DecodeGraphs, Record, graph_sizes
from headrace.models.runners.device_runner import DeviceRunner
from headrace.models.tensors.block_table import BlockTableBatchBuilder
from headrace.models.tensors.kv_cache import KvCache
from headrace.models.tensors.precision import activation_dtype
from headrace.models.tensors.torch_batch import TorchBatchBuilder
from headrace.models.tensors.varlen_attention import AttentionShape, VarlenAttention, find_varlen_attention
from headrace.prompts.grammar import Grammars
from headrace.store.errors import CannotLoadHere
from headrace.store.settings import Settings

log = logging.getLogger(__name__)

STEP_TOKENS = 2048
"""Tokens of a step on a GPU, if the settings say nothing: fewer leave its arithmetic units idle during prefill."""


def cuda_memory(device: torch.device) -> tuple[int, int]:
    """Return the free and all bytes of a GPU. What torch keeps for the next pass is not free."""
    torch.cuda.synchronize(device)
    return torch.cuda.mem_get_info(device)


@dataclass(frozen=True, slots=True)
class GpuCalls:
    """The calls that need a card. Tests replace them by functions for CPU tensors."""

    memory: Callable[[torch.device], tuple[int, int]] = cuda_memory
    attention: Callable[[AttentionShape], VarlenAttention | None] = find_varlen_attention
    record: Callable[[], Record] = CudaRecorder


def load(
    folder: Path,
    architecture: Architecture,
    settings: Settings,
    dtype: torch.dtype,
    device: torch.device,
    *,
    ends: frozenset[int],
    grammars: Grammars | None,
    gpu: GpuCalls | None = None,
) -> DeviceRunner:
    """Return the runner of a model. Raises ModelLoadError if the GPU has no room for a KV block."""
    gpu, config = gpu or GpuCalls(), architecture.config
    model = architecture.family.load(folder, config, context=config.context_window, dtype=dtype, device=device)
    uses_tables = _use_block_tables(model, config, settings, dtype, device, gpu)

    def with_cache(num_blocks: int) -> ModelWithCache:
        size = settings.kv_block_tokens
        cache = KvCache(
            num_layers=config.num_layers, num_blocks=num_blocks, block_tokens=size, num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim, dtype=activation_dtype(dtype), device=device,
        )  # fmt: skip
        if uses_tables:
            return ModelWithCache(model, cache, BlockTableBatchBuilder(block_tokens=size, device=device))
        return ModelWithCache(model, cache, TorchBatchBuilder(block_tokens=size, windows=config.windows, device=device))

    new_runner = partial(
        DeviceRunner, context_window=config.context_window, eos_token_ids=ends, device=device, grammars=grammars
    )
    num_blocks = _num_blocks(settings, config, dtype, device, gpu, lambda count: new_runner(with_cache(count)))
    defaults = _defaults(num_blocks * settings.kv_block_tokens, config)
    loaded = with_cache(num_blocks)
    graphs = None
    if uses_tables and settings.decode_graphs == "auto":
        slots = settings.max_slots if "max_slots" in settings.model_fields_set else defaults["max_slots"]
        # A worker has a quarter more for jobs that go ahead of others.
        graphs = _graphs(
            loaded, slots + slots // 4, min(config.context_window, num_blocks * settings.kv_block_tokens), device, gpu
        )
    return new_runner(loaded, graphs=graphs, default_settings=defaults)


def _use_block_tables(
    model: CausalModel,
    config: ModelConfig,
    settings: Settings,
    dtype: torch.dtype,
    device: torch.device,
    gpu: GpuCalls,
) -> bool:
    """Give the model the attention that follows block tables, if it works here. Return whether it has it."""
    if not isinstance(model, LlamaModel):
        log.info("block_table_attention_unused reason=%s", "transformers' code may want scores that the kernels lack")
        return False
    shape = AttentionShape(
        num_heads=model.config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        windows=frozenset(config.windows),
        block_tokens=settings.kv_block_tokens,
        dtype=activation_dtype(dtype),
        device=device,
    )
    found = gpu.attention(shape)
    if found is not None:
        model.attend = found
    return found is not None


def _num_blocks(
    settings: Settings,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    gpu: GpuCalls,
    new_runner: Callable[[int], DeviceRunner],
) -> int:
    """Return the size of the KV pool: the setting, or what is free after the largest pass."""
    size = settings.kv_block_tokens
    is_set = "kv_pool_tokens" in settings.model_fields_set
    if is_set and settings.kv_pool_tokens != "auto":
        return settings.kv_pool_tokens // size
    slots = settings.max_slots if "max_slots" in settings.model_fields_set else GPU_SLOTS
    step_tokens = settings.step_tokens if "step_tokens" in settings.model_fields_set else STEP_TOKENS
    _run_largest_pass(new_runner, slots=slots, step_tokens=step_tokens, context_window=config.context_window, size=size)
    free, total = gpu.memory(device)
    found = gpu_blocks(
        free,
        total,
        share=settings.gpu_memory_share,
        block_bytes=size * token_bytes(config, dtype),
        context_blocks=-(-config.context_window // size),
        slots=slots,
    )
    if not found:
        raise CannotLoadHere(
            f"{free >> 20} of {total >> 20} MiB are free on {device} beside the weights and a pass, too little for a "
            f"KV cache: free some, or raise HEADRACE_GPU_MEMORY_SHARE ({settings.gpu_memory_share})"
        )
    log.info("kv_pool_sized blocks=%d free_bytes=%d total_bytes=%d", found, free, total)
    return found


def _run_largest_pass(
    new_runner: Callable[[int], DeviceRunner], *, slots: int, step_tokens: int, context_window: int, size: int
) -> None:
    """Run a step of the most tokens and the most sampled rows, over a small cache of its own.

    The rows share their blocks: their numbers mean nothing. The memory that the step took stays with torch.
    """
    num_rows = max(1, min(slots, step_tokens))
    count = max(1, min(step_tokens // num_rows, context_window - 2))
    blocks = range(-(-(count + 2) // size))
    sampling = SamplingParams(max_tokens=3, temperature=1.0, top_p=0.9, seed=0)
    rows = tuple(
        Row(EngineRequest(f"largest {n}", (0,) * count, sampling), (0,) * count, 0, blocks, (), sample=True)
        for n in range(num_rows)
    )
    new_runner(len(blocks)).run(StepPlan(rows))


def _defaults(pool_tokens: int, config: ModelConfig) -> Mapping[str, int]:
    return {"max_slots": gpu_slots(pool_tokens, config.context_window), "step_tokens": STEP_TOKENS}


def _graphs(
    loaded: ModelWithCache, most: int, context: int, device: torch.device, gpu: GpuCalls
) -> DecodeGraphs | None:
    """Record the decode passes. None, and a line in the log, if that fails."""
    try:
        return DecodeGraphs(loaded, graph_sizes(most), context=context, device=device, record=gpu.record())
    except RuntimeError as error:
        log.warning("decode_graphs_unused reason=%s", error)
        return None

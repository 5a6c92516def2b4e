"""From a model folder to a TorchRunner: digest checked, weights read, cache sized, threads set."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from models.families.config import LlamaConfig
from models.families.geometry import Geometry, read_geometry
from models.families.llama import LlamaModel
from models.families.model import BatchBuilder, Cache, CausalModel
from models.families.model_folder import read_json, registered_folder, small_files
from models.families.safetensors_reader import Weights
from models.loading import kv_pool_size
from models.native.choose import kernels_for
from models.native.llama import NativeBatches, NativeLlama, PagedCache
from models.runners.torch_runner import TorchRunner
from models.tensors.batch import BatchBuilder as TorchBatches
from models.tensors.kv_cache import KvCache
from models.tensors.precision import activation_dtype, resolve_device, resolve_dtype
from prompts.grammar import Grammars
from prompts.tokenizer import eos_token_ids
from store.errors import ModelLoadError
from store.registry.models import ModelVersion
from store.settings import Settings


def load_torch(version: ModelVersion, settings: Settings) -> TorchRunner:
    """Return the runner of a registered version.

    Raises ModelLoadError if the folder is missing, damaged, changed since it was registered, or not supported.
    """
    return runner_for(registered_folder(version), settings, dtype=version.dtype)


def runner_for(folder: Path, settings: Settings, *, dtype: str = "auto") -> TorchRunner:
    """Return a runner for an unregistered model folder. ``dtype`` goes before the setting unless it is ``auto``.

    The weights are read and packed in a thread that ends. A thread that has once computed keeps its team of OpenMP
    threads, and with more of those than CPUs GNU's OpenMP sleeps at every barrier instead of spinning: beside the team
    of the engine's thread, that made each decode step a fifth to a third longer.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="load") as loader:
        return loader.submit(_load, folder, settings, dtype).result()


def _load(folder: Path, settings: Settings, dtype: str) -> TorchRunner:
    config = read_geometry(folder, read_json(folder / "config.json"))
    device = resolve_device(settings.device)
    number_format = resolve_dtype(settings.dtype if dtype == "auto" else dtype, device)
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    try:
        parts = _read(folder, config, settings, number_format, device)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelLoadError(f"{folder}: not enough memory for the weights and the KV cache on {device}") from error
    files = small_files(folder)
    ends = eos_token_ids(files)
    grammars = None
    if "tokenizer.json" in files:
        grammars = Grammars(files["tokenizer.json"], vocab_size=config.vocab_size, eos_token_ids=ends)
    return TorchRunner(
        parts.model,
        parts.cache,
        batches=parts.batches,
        context_window=config.context_window,
        eos_token_ids=ends,
        device=device,
        grammars=grammars,
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    """A model with the cache and the batches of its kind."""

    model: CausalModel
    cache: Cache
    batches: BatchBuilder


def _read(folder: Path, config: Geometry, settings: Settings, dtype: torch.dtype, device: torch.device) -> _Parts:
    num_blocks, block_tokens = (
        kv_pool_size.num_blocks(folder, config, settings, dtype, device),
        settings.kv_block_tokens,
    )
    context = min(config.context_window, num_blocks * block_tokens)
    kernels = kernels_for(config, settings, dtype, device)
    if isinstance(config, LlamaConfig) and kernels is not None:
        paged = PagedCache(config, num_blocks=num_blocks, block_tokens=block_tokens, dtype=activation_dtype(dtype))
        with Weights(folder) as weights:
            native = NativeLlama(kernels, config, weights, context=context, dtype=dtype)
        return _Parts(native, paged, NativeBatches(paged.pages_per_block))
    cache = KvCache(
        num_layers=config.num_layers,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=activation_dtype(dtype),
        device=device,
    )
    batches = TorchBatches(block_tokens=block_tokens, spans=config.windows, device=device)
    return _Parts(_read_torch(folder, config, context, dtype, device), cache, batches)


def _read_torch(folder: Path, config: Geometry, context: int, dtype: torch.dtype, device: torch.device) -> CausalModel:
    if isinstance(config, LlamaConfig):
        with Weights(folder) as weights:
            return LlamaModel(config, weights, context=context, dtype=dtype, device=device)
    if dtype == torch.int8:
        raise ModelLoadError(f"{folder}: int8 is for the Llama family alone; use bfloat16")
    from models.families.generic import read_generic  # noqa: PLC0415 - transformers takes seconds to import
    from models.families.selfcheck import page_checked  # noqa: PLC0415 - as above

    return page_checked(read_generic(folder, config, dtype=dtype, device=device), dtype=dtype, device=device)

"""Load a model folder into a TorchRunner: check the digest, read the weights, size the KV cache, set the threads.

On a GPU the runner is a DeviceRunner (``gpu_load``).
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from headrace.models.families.model import ModelWithCache
from headrace.models.families.model_folder import read_json, registered_folder, small_files
from headrace.models.families.registry import Architecture, read_architecture
from headrace.models.loading import gpu_load, kv_pool_size
from headrace.models.native.choose import native_loader
from headrace.models.runners.torch_runner import TorchRunner
from headrace.models.tensors.kv_cache import KvCache
from headrace.models.tensors.precision import activation_dtype, resolve_device, resolve_dtype
from headrace.models.tensors.torch_batch import TorchBatchBuilder
from headrace.prompts.grammar import Grammars
from headrace.prompts.tokenizer import eos_token_ids
from headrace.store.errors import CannotLoadHere
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings


def load_torch(version: ModelVersion, settings: Settings) -> TorchRunner:
    """Return the runner of a registered version.

    Raises ModelLoadError if the folder is missing, damaged, changed since it was registered, or not supported.
    """
    return runner_for(registered_folder(version), settings, dtype=version.dtype)


def runner_for(folder: Path, settings: Settings, *, dtype: str = "auto") -> TorchRunner:
    """Return a runner for an unregistered model folder. ``dtype`` overrides the setting unless it is ``auto``.

    A temporary thread reads and packs the weights. A thread that has computed keeps its OpenMP threads. If there are
    more OpenMP threads than CPUs, GNU's OpenMP sleeps at every barrier instead of spinning: with the threads of the
    engine beside them, each decode step was 20 to 33 % longer.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="load") as loader:
        return loader.submit(_load, folder, settings, dtype).result()


def _load(folder: Path, settings: Settings, dtype: str) -> TorchRunner:
    architecture = read_architecture(folder, read_json(folder / "config.json"))
    config = architecture.config
    device = resolve_device(settings.device)
    weight_dtype = resolve_dtype(settings.dtype if dtype == "auto" else dtype, device)
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    files = small_files(folder)
    ends = eos_token_ids(files)
    grammars = None
    if "tokenizer.json" in files:
        grammars = Grammars(files["tokenizer.json"], vocab_size=config.vocab_size, eos_token_ids=ends)
    try:
        if device.type == "cuda":
            return gpu_load.load(folder, architecture, settings, weight_dtype, device, ends=ends, grammars=grammars)
        loaded = _load_model(folder, architecture, settings, weight_dtype, device)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CannotLoadHere(f"{folder}: not enough memory for the weights and the KV cache on {device}") from error
    return TorchRunner(
        loaded,
        context_window=config.context_window,
        eos_token_ids=ends,
        device=device,
        grammars=grammars,
    )


def _load_model(
    folder: Path, architecture: Architecture, settings: Settings, dtype: torch.dtype, device: torch.device
) -> ModelWithCache:
    """Return the model on a CPU."""
    family, config, block_tokens = architecture.family, architecture.config, settings.kv_block_tokens
    num_blocks = kv_pool_size.num_blocks(folder, config, settings, dtype)
    context = min(config.context_window, num_blocks * block_tokens)
    load_native = native_loader(architecture, settings, dtype, device)
    if load_native is not None:
        return load_native(folder, num_blocks=num_blocks, context=context)
    cache = KvCache(
        num_layers=config.num_layers,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=activation_dtype(dtype),
        device=device,
    )
    builder = TorchBatchBuilder(block_tokens=block_tokens, windows=config.windows, device=device)
    model = family.load(folder, config, context=context, dtype=dtype, device=device)
    return ModelWithCache(model, cache, builder)

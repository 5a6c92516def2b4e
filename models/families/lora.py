"""LoRA adapters in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``, checked with their base.

An adapter adds ``scale * B (A x)`` to the result of a linear layer. An option that would change the output in another
way is an error. It is never ignored.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from headrace.models.families.model_folder import check_folder, file_digest, read_json
from headrace.models.families.registry import Architecture
from headrace.store.errors import ModelLoadError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_RANK = 512
"""The kernels keep so many numbers of a row; ``models/native/src/low_rank.h`` has the same limit."""

_PICKLED = "adapter_model.bin"

# What an adapter's file says of its training or of its place. None of it changes what the adapter computes.
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
_READ = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"}
)
# Every other way to begin a training also changes the weights of the base, on which the adapter then depends.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
_HINTS = {
    "use_dora": "DoRA is not supported: train with use_dora=False, or merge the adapter into its base",
    "modules_to_save": "it replaces whole modules (modules_to_save): merge the adapter into its base",
}

_TENSOR = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one linear layer: ``b @ (a @ x)`` for its input x.

    ``a`` is (rank, inputs), ``b`` (outputs, rank) with the scale in it; both are float32.
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        """The rank."""
        return self.a.shape[0]


AdapterLayers = tuple[Mapping[str, LowRank], ...]
"""The adapted modules of each decoder layer, by their names in the layer, as ``self_attn.q_proj``."""


def adapter_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and digests of an adapter's two files. Raises ModelLoadError."""
    digests = {}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            digests[name] = file_digest(folder / name)
        except OSError as error:
            raise ModelLoadError(f"{folder / name} cannot be read: {error}") from error
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def read_adapter(folder: Path, base: Architecture) -> AdapterLayers:
    """Return the weights of an adapter for a base model.

    Raises ModelLoadError, with one sentence, if a file is missing or pickled, an option is not supported, or a tensor
    does not fit the base or is not finite.
    """
    modules = base.family.adaptable(base.config)
    if not modules:
        raise ModelLoadError("the base has no adapters: they are for Llama, SmolLM2, Mistral, Qwen2 and Qwen3")
    if not (check_folder(folder) / CONFIG_FILE).is_file():
        raise ModelLoadError(f"{folder} has no {CONFIG_FILE}: a LoRA adapter in PEFT's format needs it")
    raw = read_json(folder / CONFIG_FILE)
    _check_config(raw)
    found = _read_tensors(folder)
    layers: list[dict[str, LowRank]] = [{} for _ in range(base.config.num_layers)]
    for (layer, module), pair in found.items():
        if layer >= len(layers) or module not in modules:
            known = ", ".join(name.rpartition(".")[2] for name in modules)
            raise ModelLoadError(
                f"{folder} changes layer {layer}, {module}; the base has {len(layers)} layers, and adapters may change "
                f"{known}"
            )
        layers[layer][module] = _low_rank(raw, f"model.layers.{layer}.{module}", pair, modules[module])
    if not found:
        raise ModelLoadError(f"{folder / WEIGHTS_FILE} has no tensors")
    return tuple(layers)


def _check_config(raw: Mapping[str, Any]) -> None:
    if raw.get("peft_type") != "LORA":
        raise ModelLoadError(f"{CONFIG_FILE}: peft_type {raw.get('peft_type')!r} is not supported; supported: 'LORA'")
    if raw.get("bias", "none") != "none":
        raise ModelLoadError(f"{CONFIG_FILE}: bias {raw['bias']!r} is not supported; supported: 'none'")
    if raw.get("init_lora_weights", True) not in _BEGINNINGS:
        raise ModelLoadError(
            f"{CONFIG_FILE}: init_lora_weights {raw['init_lora_weights']!r} changes the base's weights: convert the "
            "adapter to plain LoRA when you save it, as PEFT's guide describes, or merge it into its base"
        )
    for name, value in raw.items():
        if value and name not in _WITHOUT_EFFECT | _READ:
            hint = _HINTS.get(name, f"the option {name} is not supported: merge the adapter into its base")
            raise ModelLoadError(f"{CONFIG_FILE}: {hint}, and register the folder as a model of its own")


def _read_tensors(folder: Path) -> dict[tuple[int, str], dict[str, torch.Tensor]]:
    """Return the tensors ``A`` and ``B`` by layer and module."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        if (folder / _PICKLED).exists():
            raise ModelLoadError(f"{folder} holds pickled weights ({_PICKLED}): save the adapter as safetensors")
        raise ModelLoadError(f"{folder} has no {WEIGHTS_FILE}")
    found: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    try:
        opened: Any = safe_open(path, framework="pt")  # the library has no annotations
        with opened as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file has keys() but cannot be iterated
                match = _TENSOR.fullmatch(name)
                if match is None:
                    raise ModelLoadError(f"{path}: tensor {name} is not a lora_A or lora_B of a linear layer")
                place = int(match[1]), match[2]
                # A copy, because a tensor that is backed by the file keeps the whole file in memory.
                found.setdefault(place, {})[match[3]] = file.get_tensor(name).to(torch.float, copy=True)
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} is not a safetensors file: {error}") from error
    return found


def _low_rank(raw: Mapping[str, Any], module: str, pair: Mapping[str, torch.Tensor], sizes: tuple[int, int]) -> LowRank:
    """Return the checked tensors of one module."""
    if pair.keys() != {"A", "B"}:
        raise ModelLoadError(f"{WEIGHTS_FILE}: {module} has only lora_{next(iter(pair))}")
    rank, scale = _rank_and_scale(raw, module)
    num_in, num_out = sizes
    for name, shape in (("A", (rank, num_in)), ("B", (num_out, rank))):
        if tuple(pair[name].shape) != shape:
            raise ModelLoadError(
                f"{WEIGHTS_FILE}: {module}.lora_{name} has shape {tuple(pair[name].shape)}; its base and "
                f"{CONFIG_FILE} ask for {shape}"
            )
        if not pair[name].isfinite().all():
            raise ModelLoadError(f"{WEIGHTS_FILE}: {module}.lora_{name} has numbers that are NaN or infinite")
    return LowRank(pair["A"].contiguous(), (pair["B"] * scale).contiguous())


def _rank_and_scale(raw: Mapping[str, Any], module: str) -> tuple[int, float]:
    rank = _of_module(raw, "r", "rank_pattern", module)
    alpha = _of_module(raw, "lora_alpha", "alpha_pattern", module)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        raise ModelLoadError(f"{CONFIG_FILE}: the rank is 1 to {MAX_RANK}, not {rank!r}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelLoadError(f"{CONFIG_FILE}: lora_alpha must be a number, not {alpha!r}")
    return rank, alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)


def _of_module(raw: Mapping[str, Any], name: str, pattern_name: str, module: str) -> object:
    """Return a value of a module: of the first pattern that matches the end of its name, else the adapter's."""
    patterns = raw.get(pattern_name) or {}
    if not isinstance(patterns, Mapping):
        raise ModelLoadError(f"{CONFIG_FILE}: {pattern_name} must be an object, not {patterns!r}")
    for pattern, value in patterns.items():
        try:
            # As PEFT's get_pattern_key.
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise ModelLoadError(f"{CONFIG_FILE}: {pattern_name}: {pattern!r} is no pattern: {error}") from error
    return raw.get(name)

"""Random LoRA adapters in PEFT's format, and their base with an adapter merged into its weights."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def adapt(
    model: PreTrainedModel, folder: Path, modules: Sequence[str], *, rank: int, seed: int, **options: object
) -> PreTrainedModel:
    """Write a random adapter for a model into ``folder``, and return a copy of the model with it merged."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(modules),
        "bias": "none",
        "lora_dropout": 0.1,
        "init_lora_weights": True,
    } | options
    (folder / "adapter_config.json").write_text(json.dumps(config))
    merged = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, module in merged.named_modules():
            if name.rpartition(".")[2] not in modules or "layers" not in name:
                continue
            weight = module.weight
            own_rank, scale = _scale(config, name)
            a = torch.randn(own_rank, weight.shape[1], generator=draw) * 0.1
            b = torch.randn(weight.shape[0], own_rank, generator=draw) * 0.1
            tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
            weight += scale * (b @ a)
    save_file(tensors, folder / "adapter_model.safetensors")
    return merged


def _scale(config: Mapping[str, object], name: str) -> tuple[int, float]:
    rank, alpha = config["r"], config["lora_alpha"]
    patterns = config.get("rank_pattern")
    if isinstance(patterns, dict):
        rank = patterns.get(name.rpartition(".")[2], rank)
    assert isinstance(rank, int)
    assert isinstance(alpha, int | float)
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)

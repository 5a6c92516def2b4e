"""The Llama family: Llama, SmolLM2, Mistral, Qwen2 and Qwen3 are one architecture with a few options.

Reads ``config.json`` without torch; the forward pass is ``llama_torch``, or ``models.native.llama`` on the CPU kernels.
An unknown option that would change the output is an error. It is never ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.models.families.model_config import UnsupportedArchitecture, quantized_elsewhere
from headrace.store.errors import ModelLoadError

if TYPE_CHECKING:
    import torch

    from headrace.models.families.llama_torch import LlamaModel

NATIVE = "headrace.models.native.llama"
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: the base, and the scaling of its frequencies for long contexts."""

    theta: float
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The sizes of a model. ``windows`` has one entry a layer: its sliding window in tokens, or None."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    context_window: int
    rope: Rope
    tie_embeddings: bool
    windows: tuple[int | None, ...]

    @property
    def num_layers(self) -> int:
        """The number of decoder layers."""
        return len(self.windows)


def _positive(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelLoadError(f"config.json: {name} must be a positive whole number, not {value!r}")
    return value


def _number(raw: Mapping[str, Any], name: str, default: float) -> float:
    value = raw.get(name, default)
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ModelLoadError(f"config.json: {name} must be a positive number, not {value!r}")
    return float(value)


def _rope(raw: Mapping[str, Any]) -> Rope:
    """Read both formats: one object ``rope_parameters``, or ``rope_theta`` beside ``rope_scaling``."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ModelLoadError(f"config.json: rope parameters must be an object, not {scaling!r}")
    theta = _number({"rope_theta": scaling.get("rope_theta", raw.get("rope_theta", 10_000.0))}, "rope_theta", 10_000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES or scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedArchitecture(
            f"config.json: rope type {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}"
        )
    if kind == "default":
        return Rope(theta)
    return Rope(
        theta,
        kind,
        factor=_number(scaling, "factor", 1.0),
        low_freq_factor=_number(scaling, "low_freq_factor", 1.0),
        high_freq_factor=_number(scaling, "high_freq_factor", 4.0),
        original_context=_positive(scaling, "original_max_position_embeddings", 8192),
    )


def _windows(raw: Mapping[str, Any], model_type: str, num_layers: int) -> tuple[int | None, ...]:
    """Return the sliding window of each layer. Mistral has one in all layers, Qwen in listed layers, Llama none."""
    if model_type == "llama" or raw.get("sliding_window") is None:
        return (None,) * num_layers
    span = _positive(raw, "sliding_window")
    if model_type == "mistral":
        return (span,) * num_layers
    if not raw.get("use_sliding_window", False):
        return (None,) * num_layers
    first = raw.get("max_window_layers", 28)
    kinds = raw.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)
    ]
    if len(kinds) != num_layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise ModelLoadError("config.json: layer_types must name sliding_attention or full_attention for every layer")
    return tuple(span if kind == "sliding_attention" else None for kind in kinds)


def parse_config(raw: Mapping[str, Any]) -> LlamaConfig:
    """Return the configuration in ``config.json``, with a ``model_type`` one of this family.

    Raises UnsupportedArchitecture for an option that this family does not support, and ModelLoadError for a setting
    that is wrong or not supported anywhere, each with one sentence.
    """
    model_type = raw["model_type"]
    if raw.get("hidden_act", "silu") != "silu":
        raise UnsupportedArchitecture(
            f"config.json: hidden_act {raw['hidden_act']!r} is not supported; supported: silu"
        )
    if raw.get("quantization_config"):
        raise ModelLoadError(f"config.json: {quantized_elsewhere(raw['quantization_config'])}")
    hidden = _positive(raw, "hidden_size")
    heads = _positive(raw, "num_attention_heads")
    kv_heads = _positive(raw, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ModelLoadError(f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads")
    return LlamaConfig(
        vocab_size=_positive(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_positive(raw, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_positive(raw, "head_dim", 128 if model_type == "qwen3" else hidden // heads),
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        context_window=_positive(raw, "max_position_embeddings", 2048),
        rope=_rope(raw),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        windows=_windows(raw, model_type, _positive(raw, "num_hidden_layers")),
    )


def read_config(folder: Path, raw: Mapping[str, Any]) -> LlamaConfig:
    """Return the configuration. As ``registry.Family.read_config``."""
    del folder
    return parse_config(raw)


def adaptable(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Return the linear layers that an adapter may change. As ``registry.Family.adaptable``."""
    hidden, inner = config.hidden_size, config.intermediate_size
    all_heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj": (hidden, all_heads),
        "self_attn.k_proj": (hidden, kv_heads),
        "self_attn.v_proj": (hidden, kv_heads),
        "self_attn.o_proj": (all_heads, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def load(
    folder: Path, config: LlamaConfig, *, context: int, dtype: "torch.dtype", device: "torch.device"
) -> "LlamaModel":
    """Return the model on torch. As ``registry.Family.load``."""
    from headrace.models.families.llama_torch import LlamaModel  # noqa: PLC0415 - torch takes seconds to import
    from headrace.models.families.safetensors_reader import Weights  # noqa: PLC0415 - as above

    with Weights(folder) as weights:
        return LlamaModel(config, weights, context=context, dtype=dtype, device=device)

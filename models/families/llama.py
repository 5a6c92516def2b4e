"""The Llama family's pass: SmolLM2, Llama, Mistral, Qwen2 and Qwen3 are one architecture with a few options.

Knows the architecture and its tensors' names. Scheduling, sampling and the cache's bookkeeping are elsewhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import embedding, rms_norm, silu

from models.families.config import LlamaConfig
from models.families.rope import RopeTable, rotate_
from models.families.safetensors_reader import Weights
from models.tensors.attention import attend
from models.tensors.batch import Batch
from models.tensors.kv_cache import KvCache
from models.tensors.linear import Linear, make_linear
from models.tensors.precision import activation_dtype


@dataclass(frozen=True, slots=True)
class _Layer:
    """One decoder layer. ``query_norm`` and ``key_norm`` are Qwen3's, else None."""

    attention_norm: torch.Tensor
    qkv: Linear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    out: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class _Reader:
    """Reads tensors by name in one number format onto one device."""

    def __init__(self, weights: Weights, dtype: torch.dtype, device: torch.device) -> None:
        self._weights = weights
        self._dtype = dtype
        self._device = device

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        # A copy: a tensor of the file that is kept keeps the whole file in memory.
        return self._weights.get(name, shape).to(self._device, activation_dtype(self._dtype), copy=True)

    def tensor_if_there(self, name: str, *shape: int) -> torch.Tensor | None:
        return self.tensor(name, *shape) if name in self._weights else None

    def linear(self, num_in: int, sizes: Mapping[str, int]) -> Linear:
        """Return the modules named in ``sizes``, each with its output size, side by side as one."""
        weights = [self._weights.get(f"{module}.weight", (size, num_in)) for module, size in sizes.items()]
        biases = [
            self._weights.get(f"{module}.bias", (size,)) if f"{module}.bias" in self._weights else None
            for module, size in sizes.items()
        ]
        return make_linear(weights, biases, self._dtype, self._device)


def _read_layer(read: _Reader, config: LlamaConfig, index: int) -> _Layer:
    prefix = f"model.layers.{index}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    all_heads, kv_heads = config.num_heads * head_dim, config.num_kv_heads * head_dim
    qkv = {f"{attention}.q_proj": all_heads, f"{attention}.k_proj": kv_heads, f"{attention}.v_proj": kv_heads}
    return _Layer(
        attention_norm=read.tensor(f"{prefix}.input_layernorm.weight", hidden),
        qkv=read.linear(hidden, qkv),
        query_norm=read.tensor_if_there(f"{attention}.q_norm.weight", head_dim),
        key_norm=read.tensor_if_there(f"{attention}.k_norm.weight", head_dim),
        out=read.linear(all_heads, {f"{attention}.o_proj": hidden}),
        mlp_norm=read.tensor(f"{prefix}.post_attention_layernorm.weight", hidden),
        gate_up=read.linear(hidden, {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}),
        down=read.linear(inner, {f"{mlp}.down_proj": hidden}),
    )


class LlamaModel:
    """The weights and the pass. Shapes: n tokens enter, (n, hidden_size) comes out; ``logits`` are float32."""

    def __init__(
        self,
        config: LlamaConfig,
        weights: Weights,
        *,
        context: int,
        dtype: torch.dtype,
        device: torch.device,
        on_layer: Callable[[int], None] = lambda index: None,
    ) -> None:
        """Read the weights layer by layer; ``context`` is the highest number of positions that will be asked for.

        Raises ModelLoadError if a tensor is missing or has another shape than the configuration says.
        """
        read = _Reader(weights, dtype, device)
        self.config = config
        self._rope = RopeTable(config.rope, config.head_dim, context, activation_dtype(dtype), device)
        self._embedding = read.tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self._layers = []
        for index in range(config.num_layers):
            self._layers.append(_read_layer(read, config, index))
            on_layer(index)
        self._norm = read.tensor("model.norm.weight", config.hidden_size)
        # Some tied checkpoints store the head again; the embedding is what the reference uses.
        head = "model.embed_tokens" if config.tie_embeddings else "lm_head"
        self._head = read.linear(config.hidden_size, {head: config.vocab_size})

    def forward(self, batch: Batch, cache: KvCache) -> torch.Tensor:
        """Run the batch's tokens through all layers, storing their keys and values; return the hidden states."""
        hidden = embedding(batch.tokens, self._embedding)
        cos, sin = self._rope.cos[batch.positions], self._rope.sin[batch.positions]
        for index, layer in enumerate(self._layers):
            qkv = self._query_key_value(layer, hidden, cos, sin)
            span = self.config.windows[index]
            hidden = hidden + layer.out(attend(qkv, self.config.num_heads, batch, cache, index, span))
            gate, up = layer.gate_up(self._normed(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden = hidden + layer.down(silu(gate).mul_(up))
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the vocabulary's scores for hidden states (n, hidden_size)."""
        return self._head(self._normed(hidden, self._norm)).float()

    def _normed(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden, weight.shape, weight, self.config.rms_norm_eps)

    def _query_key_value(
        self, layer: _Layer, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """Return (n, heads + 2 * kv_heads, head_dim), the queries and keys turned by their positions."""
        config = self.config
        flat = layer.qkv(self._normed(hidden, layer.attention_norm))
        qkv = flat.view(hidden.shape[0], -1, config.head_dim)
        turned = qkv[:, : config.num_heads + config.num_kv_heads]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = turned[:, : config.num_heads], turned[:, config.num_heads :]
            query.copy_(self._normed(query, layer.query_norm))
            key.copy_(self._normed(key, layer.key_norm))
        rotate_(turned, cos, sin)
        return qkv

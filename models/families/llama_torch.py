"""The forward pass of the Llama family on torch.

Holds the architecture and the names of its tensors. No scheduling, sampling or block allocation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding, rms_norm, silu

from headrace.models.engine.requests import Adapter
from headrace.models.families.llama import LlamaConfig, adaptable
from headrace.models.families.lora import AdapterLayers
from headrace.models.families.lora_torch import AdaptedTokens, TorchAdapter, adapted_tokens
from headrace.models.families.rope import RopeTable, rotate_
from headrace.models.families.safetensors_reader import Weights
from headrace.models.tensors.attention import attend
from headrace.models.tensors.block_table import BlockTableBatch
from headrace.models.tensors.kv_cache import KvCache
from headrace.models.tensors.linear import Linear, make_linear
from headrace.models.tensors.precision import activation_dtype
from headrace.models.tensors.torch_batch import TorchBatch

Attend = Callable[[torch.Tensor, int, Any, KvCache, int, int | None], torch.Tensor]
"""As ``models.tensors.attention.attend``, for the batches of one builder."""


@dataclass(frozen=True, slots=True)
class _DecoderLayer:
    """One decoder layer. Only Qwen3 has ``query_norm`` and ``key_norm``."""

    attention_norm: torch.Tensor
    qkv: Linear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    out: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class _WeightReader:
    """Reads tensors by name, in one number format, to one device."""

    def __init__(self, weights: Weights, dtype: torch.dtype, device: torch.device) -> None:
        self._weights = weights
        self._dtype = dtype
        self._device = device

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        # A copy, because a tensor that is backed by the file keeps the whole file in memory.
        return self._weights.get(name, shape).to(self._device, activation_dtype(self._dtype), copy=True)

    def optional_tensor(self, name: str, *shape: int) -> torch.Tensor | None:
        return self.tensor(name, *shape) if name in self._weights else None

    def linear(self, num_in: int, sizes: Mapping[str, int]) -> Linear:
        """Return the modules in ``sizes`` (name: output size) as one linear layer."""
        weights = [self._weights.get(f"{module}.weight", (size, num_in)) for module, size in sizes.items()]
        biases = [
            self._weights.get(f"{module}.bias", (size,)) if f"{module}.bias" in self._weights else None
            for module, size in sizes.items()
        ]
        return make_linear(weights, biases, self._dtype, self._device)


def _read_layer(read: _WeightReader, config: LlamaConfig, index: int) -> _DecoderLayer:
    prefix = f"model.layers.{index}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    all_heads, kv_heads = config.num_heads * head_dim, config.num_kv_heads * head_dim
    qkv = {f"{attention}.q_proj": all_heads, f"{attention}.k_proj": kv_heads, f"{attention}.v_proj": kv_heads}
    return _DecoderLayer(
        attention_norm=read.tensor(f"{prefix}.input_layernorm.weight", hidden),
        qkv=read.linear(hidden, qkv),
        query_norm=read.optional_tensor(f"{attention}.q_norm.weight", head_dim),
        key_norm=read.optional_tensor(f"{attention}.k_norm.weight", head_dim),
        out=read.linear(all_heads, {f"{attention}.o_proj": hidden}),
        mlp_norm=read.tensor(f"{prefix}.post_attention_layernorm.weight", hidden),
        gate_up=read.linear(hidden, {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}),
        down=read.linear(inner, {f"{mlp}.down_proj": hidden}),
    )


class LlamaModel:
    """The weights and the forward pass: n tokens in, hidden states (n, hidden_size) and float32 logits out.

    ``attend`` is the attention for the batches that ``forward`` gets.
    """

    has_fast_int8 = False  # int8 weights are emulated in floats here

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
        """Read the weights layer by layer. ``context`` is the highest number of positions that a request will use.

        Raises ModelLoadError if a tensor is missing or has a shape that does not match the configuration.
        """
        read = _WeightReader(weights, dtype, device)
        self.config = config
        self.attend: Attend = attend
        self._rope = RopeTable(config.rope, config.head_dim, context, activation_dtype(dtype), device)
        self._embedding = read.tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self._layers = []
        for index in range(config.num_layers):
            self._layers.append(_read_layer(read, config, index))
            on_layer(index)
        self._norm = read.tensor("model.norm.weight", config.hidden_size)
        # Some checkpoints with tied embeddings store the head too. The reference uses the embedding.
        head = "model.embed_tokens" if config.tie_embeddings else "lm_head"
        self._head = read.linear(config.hidden_size, {head: config.vocab_size})

    def forward(self, batch: TorchBatch | BlockTableBatch, cache: KvCache) -> torch.Tensor:
        """Run the tokens of a batch through all layers and store their keys and values. Return the hidden states."""
        hidden = embedding(batch.tokens, self._embedding)
        cos, sin = self._rope.cos[batch.positions], self._rope.sin[batch.positions]
        adapted = adapted_tokens(batch.rows, batch.ends, hidden.device)
        for index, layer in enumerate(self._layers):
            normed = self._normed(hidden, layer.attention_norm)
            qkv = self._query_key_value(layer, _adapt(layer.qkv(normed), normed, adapted, index, "qkv"), cos, sin)
            window = self.config.windows[index]
            attended = self.attend(qkv, self.config.num_heads, batch, cache, index, window)
            hidden = hidden + _adapt(layer.out(attended), attended, adapted, index, "out")
            normed = self._normed(hidden, layer.mlp_norm)
            gate, up = _adapt(layer.gate_up(normed), normed, adapted, index, "gate_up").chunk(2, dim=-1)
            inner = silu(gate).mul_(up)
            hidden = hidden + _adapt(layer.down(inner), inner, adapted, index, "down")
        return hidden

    def pack_adapter(self, key: str, layers: AdapterLayers) -> Adapter:
        """As ``models.families.model.CausalModel.pack_adapter``."""
        embedding = self._embedding
        return TorchAdapter(key, layers, adaptable(self.config), dtype=embedding.dtype, device=embedding.device)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states (n, hidden_size)."""
        return self._head(self._normed(hidden, self._norm)).float()

    def _normed(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden, weight.shape, weight, self.config.rms_norm_eps)

    def _query_key_value(
        self, layer: _DecoderLayer, flat: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """Return (n, heads + 2 * kv_heads, head_dim), with rotated queries and keys."""
        config = self.config
        qkv = flat.view(flat.shape[0], -1, config.head_dim)
        rotated = qkv[:, : config.num_heads + config.num_kv_heads]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = rotated[:, : config.num_heads], rotated[:, config.num_heads :]
            query.copy_(self._normed(query, layer.query_norm))
            key.copy_(self._normed(key, layer.key_norm))
        rotate_(rotated, cos, sin)
        return qkv


def _adapt(
    result: torch.Tensor, rows: torch.Tensor, adapted: Sequence[AdaptedTokens], index: int, name: str
) -> torch.Tensor:
    """Return the result of a joined layer with what adapters add. ``rows`` are the inputs of the layer."""
    for one in adapted:
        one.adapter.add_to(result, rows, one.tokens, index, name)
    return result

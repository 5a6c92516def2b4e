"""The Llama family on the CPU kernels: one call a step, with the results of ``models.families.llama_torch``.

Owns the packed weights and the pages of the KV cache. The arithmetic is in ``src``.
"""

import ctypes
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.models.engine.runner import Interrupt, Interrupted, Row, StepPlan
from headrace.models.families.llama import LlamaConfig
from headrace.models.families.lora import AdapterLayers
from headrace.models.families.model import ModelWithCache
from headrace.models.families.rope import inverse_frequencies
from headrace.models.families.safetensors_reader import Weights
from headrace.models.native.adapter import NativeAdapter
from headrace.models.native.layout import PAGE, Packed, interleave_gate_up, pack, round_up
from headrace.models.native.library import (
    INTERRUPTED,
    NO_MEMORY,
    Kernels,
    LayerStruct,
    LinearStruct,
    ModelStruct,
    PassStruct,
    pointer_of,
)
from headrace.models.tensors.huge_pages import Arena, zeros
from headrace.models.tensors.precision import activation_dtype
from headrace.models.tensors.quantised import GROUP


class NativeKvCache:
    """Keys and values of every layer in pages of 16 tokens. The layout is in ``src/kv_pages.h``."""

    def __init__(self, config: LlamaConfig, *, num_blocks: int, block_tokens: int, dtype: torch.dtype) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.pages_per_block = block_tokens // PAGE
        self.num_pages = num_blocks * self.pages_per_block
        page = config.num_kv_heads * config.head_dim * PAGE
        shape = (config.num_layers, num_blocks, self.pages_per_block * page)
        self.keys = zeros(config.num_layers * self.num_pages * page, dtype).view(shape)
        self.values = zeros(config.num_layers * self.num_pages * page, dtype).view(shape)

    def clear(self, blocks: torch.Tensor) -> None:
        """Set blocks to zero in every layer."""
        self.keys[:, blocks] = 0
        self.values[:, blocks] = 0


@dataclass(frozen=True, slots=True)
class NativeBatch:
    """The input of one pass: the rows in order, and ``ends``, the index of the last token of each row.

    The kernels read the arrays: ``sequences`` holds five numbers a row, as ``library.PassStruct``.
    """

    rows: tuple[Row, ...]
    ends: tuple[int, ...]
    tokens: "array[int]"
    sequences: "array[int]"
    pages: "array[int]"
    interrupt: Interrupt | None = None


class NativeBatchBuilder:
    """Builds batches. A block of the KV cache has ``pages_per_block`` pages."""

    def __init__(self, pages_per_block: int) -> None:
        self._pages_per_block = pages_per_block

    def build(self, plan: StepPlan) -> NativeBatch:
        """Return the batch of a plan, with the rows in the order of the plan."""
        tokens, pages, sequences, ends = array("q"), array("i"), array("q"), []
        offsets = []
        for row in plan.rows:
            sequences.extend((len(tokens), len(row.tokens), row.start, 0, self._adapter_of(row)))
            offsets.append(len(pages))
            tokens.extend(row.tokens)
            pages.extend(self._pages_of(row))
            ends.append(len(tokens) - 1)
        address = pages.buffer_info()[0]
        for index, offset in enumerate(offsets):
            sequences[5 * index + 3] = address + offset * pages.itemsize
        return NativeBatch(plan.rows, tuple(ends), tokens, sequences, pages, plan.interrupt)

    def send(self, values: Sequence[int]) -> torch.Tensor:
        """Return a tensor of these numbers."""
        return torch.tensor(values, dtype=torch.long)

    @staticmethod
    def _adapter_of(row: Row) -> int:
        adapter = row.request.adapter
        if adapter is None:
            return 0
        if not isinstance(adapter, NativeAdapter):
            raise TypeError(f"{adapter.key} was loaded for another model")
        return adapter.address

    def _pages_of(self, row: Row) -> Sequence[int]:
        count = self._pages_per_block
        if count == 1:
            return row.blocks
        return [block * count + page for block in row.blocks for page in range(count)]


class NativeLlama:
    """The weights and the forward pass: n tokens in, hidden states (n, padded hidden) and logits out, both float32."""

    has_fast_int8 = True

    def __init__(
        self,
        kernels: Kernels,
        config: LlamaConfig,
        weights: Weights,
        *,
        context: int,
        dtype: torch.dtype,
        on_layer: Callable[[int], None] = lambda index: None,
    ) -> None:
        """Read and pack the weights layer by layer. ``dtype`` is float32, bfloat16 or int8.

        Raises ModelLoadError if a tensor is missing or has a shape that does not match the configuration.
        """
        self.config = config
        self.cache_dtype = activation_dtype(dtype)
        self._kernels = kernels
        self._weights = weights
        self._dtype = dtype
        self._kept: list[torch.Tensor | Packed] = []
        self._arena = Arena()
        self._layers = (LayerStruct * config.num_layers)()
        for index in range(config.num_layers):
            self._layers[index] = self._read_layer(index)
            on_layer(index)
        self._model = self._read_model(context)
        self._space = kernels.open()
        del self._weights

    def __del__(self) -> None:
        """Free the scratch memory of the kernels."""
        if hasattr(self, "_space"):
            self._kernels.close(self._space)

    def forward(self, batch: NativeBatch, cache: NativeKvCache) -> torch.Tensor:
        """Run the tokens of a batch through all layers and store their keys and values. Return the hidden states.

        Raises IndexError for a token outside the vocabulary and MemoryError, both before it writes anything, and
        Interrupted after one of the layers.
        """
        if not 0 <= min(batch.tokens) <= max(batch.tokens) < self.config.vocab_size:
            raise IndexError(f"a token is not in the vocabulary of {self.config.vocab_size}")
        hidden = torch.empty(len(batch.tokens), round_up(self.config.hidden_size, GROUP))
        step = PassStruct(
            len(batch.tokens),
            len(batch.rows),
            batch.tokens.buffer_info()[0],
            batch.sequences.buffer_info()[0],
            hidden.data_ptr(),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            cache.num_pages,
            None if batch.interrupt is None else batch.interrupt.address,
        )
        self._model.threads = torch.get_num_threads()
        outcome = self._kernels.layers(self._model, step, self._space)
        if outcome == NO_MEMORY:
            raise MemoryError(f"no memory for a pass of {len(batch.tokens)} tokens")
        if outcome == INTERRUPTED:
            raise Interrupted
        return hidden

    def pack_adapter(self, key: str, layers: AdapterLayers) -> NativeAdapter:
        """As ``models.families.model.CausalModel.pack_adapter``."""
        return NativeAdapter(key, layers, self.config, self.cache_dtype)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states (n, padded hidden)."""
        rows = hidden.contiguous()
        selected = torch.arange(len(rows))
        scores = torch.empty(len(rows), self._model.head.panels * 32)
        self._kernels.logits(
            self._model, rows.data_ptr(), selected.data_ptr(), len(rows), scores.data_ptr(), self._space
        )
        return scores[:, : self.config.vocab_size]

    def _keep(self, tensor: torch.Tensor | None) -> int | None:
        """Copy a tensor into the arena, where it lives as long as the model, and return its address."""
        if tensor is None:
            return None
        kept = self._arena.copy(tensor)
        self._kept.append(kept)
        return pointer_of(kept)

    def _tensor(self, name: str, *shape: int) -> torch.Tensor:
        # A copy, because a tensor that is backed by the file keeps the whole file in memory.
        return self._weights.get(name, shape).to(torch.float, copy=True).contiguous()

    def _optional_tensor(self, name: str, *shape: int) -> torch.Tensor | None:
        return self._tensor(name, *shape) if name in self._weights else None

    def _linear(self, num_in: int, sizes: Mapping[str, int], *, gated: bool = False) -> LinearStruct:
        """Return the modules in ``sizes`` (name: output size) as one linear layer. A missing bias counts as zeros."""
        weights = [self._weights.get(f"{module}.weight", (size, num_in)).float() for module, size in sizes.items()]
        biases = [self._optional_tensor(f"{module}.bias", size) for module, size in sizes.items()]
        join = (lambda parts: interleave_gate_up(*parts)) if gated else torch.cat
        bias = None
        if any(each is not None for each in biases):
            filled = zip(biases, sizes.values(), strict=True)
            bias = join([torch.zeros(size) if each is None else each for each, size in filled])
        packed = pack(join(weights), bias, self._dtype)
        kept = packed.copied(self._arena.copy)
        self._kept.append(kept)
        return LinearStruct.of(kept)

    def _read_layer(self, index: int) -> LayerStruct:
        config, prefix = self.config, f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        all_heads, kv_heads = config.num_heads * head_dim, config.num_kv_heads * head_dim
        qkv = {f"{attention}.q_proj": all_heads, f"{attention}.k_proj": kv_heads, f"{attention}.v_proj": kv_heads}
        return LayerStruct(
            self._keep(self._tensor(f"{prefix}.input_layernorm.weight", hidden)),
            self._linear(hidden, qkv),
            self._keep(self._optional_tensor(f"{attention}.q_norm.weight", head_dim)),
            self._keep(self._optional_tensor(f"{attention}.k_norm.weight", head_dim)),
            self._linear(all_heads, {f"{attention}.o_proj": hidden}),
            self._keep(self._tensor(f"{prefix}.post_attention_layernorm.weight", hidden)),
            self._linear(hidden, {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}, gated=True),
            self._linear(inner, {f"{mlp}.down_proj": hidden}),
            config.windows[index] or 0,
        )

    def _embedding(self) -> int | None:
        """Return the address of the embedding table, or None if the output head holds the same numbers."""
        config = self.config
        if config.tie_embeddings and self._dtype == self.cache_dtype:
            return None
        table = self._weights.get("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
        return self._keep(table.to(self.cache_dtype, copy=True).contiguous())

    def _read_model(self, context: int) -> ModelStruct:
        config = self.config
        angles = torch.outer(
            torch.arange(context, dtype=torch.float), inverse_frequencies(config.rope, config.head_dim)
        )
        # Some checkpoints with tied embeddings store the head too. The reference uses the embedding.
        head = "model.embed_tokens" if config.tie_embeddings else "lm_head"
        return ModelStruct(
            config.num_layers,
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            1,
            config.rms_norm_eps,
            config.head_dim**-0.5,
            self._embedding(),
            self._keep(angles.cos()),
            self._keep(angles.sin()),
            0 if self.cache_dtype == torch.float32 else 1,
            ctypes.cast(self._layers, ctypes.POINTER(LayerStruct)),
            self._keep(self._tensor("model.norm.weight", config.hidden_size)),
            self._linear(config.hidden_size, {head: config.vocab_size}),
        )


def load(
    kernels: Kernels,
    config: LlamaConfig,
    folder: Path,
    *,
    num_blocks: int,
    block_tokens: int,
    context: int,
    dtype: torch.dtype,
) -> ModelWithCache:
    """Read and pack the weights in ``folder``. As ``models.native.choose.NativeFamily.load``."""
    cache = NativeKvCache(config, num_blocks=num_blocks, block_tokens=block_tokens, dtype=activation_dtype(dtype))
    with Weights(folder) as weights:
        model = NativeLlama(kernels, config, weights, context=context, dtype=dtype)
    return ModelWithCache(model, cache, NativeBatchBuilder(cache.pages_per_block))

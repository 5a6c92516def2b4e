"""The Llama family's pass by the kernels: the same weights and answers as ``models.families.llama``, one call a step.

Holds the packed weights and the pages of the cache; the arithmetic is in ``src``.
"""

import ctypes
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from models.engine.runner import Interrupt, Interrupted, Row, StepPlan
from models.families.config import LlamaConfig
from models.families.rope import inverse_frequencies
from models.families.safetensors_reader import Weights
from models.native.layout import PAGE, Packed, gates_and_ups, pack, round_up
from models.native.library import INTERRUPTED, NO_MEMORY, Kernels, Layer, Linear, Model, Pass, pointer_of
from models.tensors.huge_pages import Arena, zeros
from models.tensors.precision import activation_dtype
from models.tensors.quantised import GROUP


class PagedCache:
    """Keys and values of every layer in pages of 16 tokens (drawn in ``src/attention.h``)."""

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
        """Wipe blocks in every layer."""
        self.keys[:, blocks] = 0
        self.values[:, blocks] = 0


@dataclass(frozen=True, slots=True)
class NativeBatch:
    """One pass: ``rows`` in order, ``ends`` the index of each one's last token. Arrays are read by the kernels."""

    rows: tuple[Row, ...]
    ends: tuple[int, ...]
    tokens: "array[int]"
    spans: "array[int]"
    pages: "array[int]"
    interrupt: Interrupt | None = None


class NativeBatches:
    """Makes batches for one number of pages a block."""

    def __init__(self, pages_per_block: int) -> None:
        self._pages_per_block = pages_per_block

    def build(self, plan: StepPlan) -> NativeBatch:
        """Lay out a plan's rows in their order."""
        tokens, pages, spans, ends = array("q"), array("i"), array("q"), []
        offsets = []
        for row in plan.rows:
            spans.extend((len(tokens), len(row.tokens), row.start, 0))
            offsets.append(len(pages))
            tokens.extend(row.tokens)
            pages.extend(self._pages_of(row))
            ends.append(len(tokens) - 1)
        address = pages.buffer_info()[0]
        for index, offset in enumerate(offsets):
            spans[4 * index + 3] = address + offset * pages.itemsize
        return NativeBatch(plan.rows, tuple(ends), tokens, spans, pages, plan.interrupt)

    def send(self, values: Sequence[int]) -> torch.Tensor:
        """Return numbers as a tensor."""
        return torch.tensor(values, dtype=torch.long)

    def _pages_of(self, row: Row) -> Sequence[int]:
        count = self._pages_per_block
        if count == 1:
            return row.blocks
        return [block * count + page for block in row.blocks for page in range(count)]


class NativeLlama:
    """The weights and the pass. Shapes: n tokens enter, (n, padded hidden) float32 comes out; logits are float32."""

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
        """Read and pack the weights layer by layer; ``dtype`` is float32, bfloat16 or int8.

        Raises ModelLoadError if a tensor is missing or has another shape than the configuration says.
        """
        self.config = config
        self.cache_dtype = activation_dtype(dtype)
        self._kernels = kernels
        self._weights = weights
        self._dtype = dtype
        self._kept: list[torch.Tensor | Packed] = []
        self._arena = Arena()
        self._layers = (Layer * config.num_layers)()
        for index in range(config.num_layers):
            self._layers[index] = self._read_layer(index)
            on_layer(index)
        self._model = self._read_model(context)
        self._space = kernels.open()
        del self._weights

    def __del__(self) -> None:
        """Free the kernels' scratch memory."""
        if hasattr(self, "_space"):
            self._kernels.close(self._space)

    def forward(self, batch: NativeBatch, cache: PagedCache) -> torch.Tensor:
        """Run the batch's tokens through all layers, storing their keys and values; return the hidden states.

        Raises IndexError for a token that is not in the vocabulary, and MemoryError, before anything is written, and
        Interrupted after one of the layers.
        """
        if not 0 <= min(batch.tokens) <= max(batch.tokens) < self.config.vocab_size:
            raise IndexError(f"a token is not in the vocabulary of {self.config.vocab_size}")
        hidden = torch.empty(len(batch.tokens), round_up(self.config.hidden_size, GROUP))
        step = Pass(
            len(batch.tokens),
            len(batch.rows),
            batch.tokens.buffer_info()[0],
            batch.spans.buffer_info()[0],
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

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the vocabulary's scores for hidden states (n, padded hidden)."""
        rows = hidden.contiguous()
        picked = torch.arange(len(rows))
        scores = torch.empty(len(rows), self._model.head.panels * 32)
        self._kernels.logits(self._model, rows.data_ptr(), picked.data_ptr(), len(rows), scores.data_ptr(), self._space)
        return scores[:, : self.config.vocab_size]

    def _keep(self, tensor: torch.Tensor | None) -> int | None:
        """Return the address of a tensor that lives as long as the model."""
        if tensor is None:
            return None
        kept = self._arena.copy(tensor)
        self._kept.append(kept)
        return pointer_of(kept)

    def _tensor(self, name: str, *shape: int) -> torch.Tensor:
        # A copy: a tensor of the file that is kept keeps the whole file in memory.
        return self._weights.get(name, shape).to(torch.float, copy=True).contiguous()

    def _tensor_if_there(self, name: str, *shape: int) -> torch.Tensor | None:
        return self._tensor(name, *shape) if name in self._weights else None

    def _linear(self, num_in: int, sizes: Mapping[str, int], *, gated: bool = False) -> Linear:
        """Return the modules named in ``sizes``, each with its output size, as one; a missing bias counts as zeros."""
        weights = [self._weights.get(f"{module}.weight", (size, num_in)).float() for module, size in sizes.items()]
        biases = [self._tensor_if_there(f"{module}.bias", size) for module, size in sizes.items()]
        join = (lambda parts: gates_and_ups(*parts)) if gated else torch.cat
        bias = None
        if any(each is not None for each in biases):
            filled = zip(biases, sizes.values(), strict=True)
            bias = join([torch.zeros(size) if each is None else each for each, size in filled])
        packed = pack(join(weights), bias, self._dtype)
        kept = packed.moved(self._arena.copy)
        self._kept.append(kept)
        return Linear.of(kept)

    def _read_layer(self, index: int) -> Layer:
        config, prefix = self.config, f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        all_heads, kv_heads = config.num_heads * head_dim, config.num_kv_heads * head_dim
        qkv = {f"{attention}.q_proj": all_heads, f"{attention}.k_proj": kv_heads, f"{attention}.v_proj": kv_heads}
        return Layer(
            self._keep(self._tensor(f"{prefix}.input_layernorm.weight", hidden)),
            self._linear(hidden, qkv),
            self._keep(self._tensor_if_there(f"{attention}.q_norm.weight", head_dim)),
            self._keep(self._tensor_if_there(f"{attention}.k_norm.weight", head_dim)),
            self._linear(all_heads, {f"{attention}.o_proj": hidden}),
            self._keep(self._tensor(f"{prefix}.post_attention_layernorm.weight", hidden)),
            self._linear(hidden, {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}, gated=True),
            self._linear(inner, {f"{mlp}.down_proj": hidden}),
            config.windows[index] or 0,
        )

    def _embedding(self) -> int | None:
        """Return the table's address, or None where the head holds the same numbers: once is enough."""
        config = self.config
        if config.tie_embeddings and self._dtype == self.cache_dtype:
            return None
        table = self._weights.get("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
        return self._keep(table.to(self.cache_dtype, copy=True).contiguous())

    def _read_model(self, context: int) -> Model:
        config = self.config
        angles = torch.outer(
            torch.arange(context, dtype=torch.float), inverse_frequencies(config.rope, config.head_dim)
        )
        # Some tied checkpoints store the head again; the embedding is what the reference uses.
        head = "model.embed_tokens" if config.tie_embeddings else "lm_head"
        return Model(
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
            ctypes.cast(self._layers, ctypes.POINTER(Layer)),
            self._keep(self._tensor("model.norm.weight", config.hidden_size)),
            self._linear(config.hidden_size, {head: config.vocab_size}),
        )

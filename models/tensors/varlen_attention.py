"""Attention that follows block tables, by torch's variable-length kernels (``torch.nn.attention.varlen``).

Which of them works depends on the torch, the card, the number format, the head size and the window: cuDNN takes block
tables on some cards and no window, FlashAttention 3 and 4 take them if their package is installed, FlashAttention 2
takes none. Torch has no question for it. So each is tried once with a small batch, and its numbers are compared with
those of the gathering attention.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch

from headrace.models.engine.requests import EngineRequest, SamplingParams
from headrace.models.engine.runner import Row, StepPlan
from headrace.models.tensors.attention import attend
from headrace.models.tensors.block_table import BlockTableBatch, BlockTableBatchBuilder
from headrace.models.tensors.kv_cache import KvCache
from headrace.models.tensors.torch_batch import TorchBatchBuilder

log = logging.getLogger(__name__)

Kernel = Callable[..., torch.Tensor]
"""``varlen_attn`` of torch 2.12 and later, or a function with the same arguments."""

_TOLERANCE = 0.03  # of bfloat16 numbers about 1


class VarlenAttention:
    """``models.tensors.attention.attend`` for batches with block tables, by one kernel call a layer."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __call__(
        self, qkv: torch.Tensor, num_heads: int, batch: BlockTableBatch, cache: KvCache, layer: int, window: int | None
    ) -> torch.Tensor:
        """Store the keys and values of the pass, and return the attention output, (n, num_heads * head_dim)."""
        query = qkv[:, :num_heads]
        cache.write(layer, batch.slots, qkv[:, num_heads:])
        keys, values = cache.pages(layer)
        found = self._kernel(
            query,
            keys,
            values,
            batch.query_starts,
            None,
            batch.max_query,
            batch.max_context,
            # The kernels count the tokens before a token's own, aligned to the end of the context.
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=keys.shape[2] != num_heads,
            seqused_k=batch.context_lengths,
            block_table=batch.block_table,
        )
        return found.reshape(qkv.shape[0], -1)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a kernel must support: the heads, the windows of the layers, the block size and the number format."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: Collection[int | None]
    block_tokens: int
    dtype: torch.dtype
    device: torch.device


def find_varlen_attention(
    shape: AttentionShape, kernels: Callable[[], Iterator[tuple[str, Kernel]]] | None = None
) -> VarlenAttention | None:
    """Return the attention of the first kernel that gives the right numbers here, or None. Logs which, or why not."""
    if shape.dtype not in (torch.float16, torch.bfloat16) and kernels is None:
        log.info("block_table_attention_unused reason=%s", f"the kernels take no {shape.dtype}")
        return None
    refusals = []
    for name, kernel in (kernels or torch_kernels)():
        reason = _refusal(kernel, shape)
        if reason is None:
            log.info("block_table_attention_used kernel=%s", name)
            return VarlenAttention(kernel)
        refusals.append(f"{name}: {reason}")
    log.info("block_table_attention_unused reason=%s", "; ".join(refusals))
    return None


def torch_kernels() -> Iterator[tuple[str, Kernel]]:
    """Yield torch's kernels that are installed, each active until the next one is asked for.

    The import takes seconds, because it brings torch's compiler.
    """
    try:
        kernel: Kernel = import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError as error:
        log.info("varlen_attention_missing reason=%s", error)
        return
    yield "torch", kernel
    for name in ("FA4", "FA3"):
        try:
            import_module("torch.nn.attention").activate_flash_attention_impl(name)
        except (AttributeError, ImportError, RuntimeError, ValueError) as error:
            log.info("flash_attention_missing name=%s reason=%s", name, error)
            continue
        yield name, kernel
        import_module("torch.nn.attention").restore_flash_attention_impl()


def _refusal(kernel: Kernel, shape: AttentionShape) -> str | None:
    """Return why the kernel cannot be used for passes with prefill chunks and for passes without; None if it can."""
    size = shape.block_tokens
    lengths = (2 * size + 3, size, 1)
    for window in set(shape.windows):
        for chunk in (5, 1):
            try:
                wrong = _worst_difference(kernel, shape, window, [min(chunk, length) for length in lengths], lengths)
            except (RuntimeError, TypeError, ValueError) as error:
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if not wrong <= _TOLERANCE:
                return f"its numbers are wrong by {wrong:.3g} with window {window} and {chunk} tokens a row"
    return None


def _worst_difference(
    kernel: Kernel, shape: AttentionShape, window: int | None, counts: Sequence[int], lengths: Sequence[int]
) -> float:
    """Return the largest difference from the gathering attention; infinity for NaN. One row for each length."""
    size, device = shape.block_tokens, shape.device
    widths = [-(-length // size) for length in lengths]
    free = list(range(sum(widths)))
    blocks = [[free.pop() for _ in range(width)] for width in widths]
    params = SamplingParams(max_tokens=1)
    rows = [
        Row(EngineRequest(str(n), (0,), params), [0] * count, length - count, blocks[n], [], sample=False)
        for n, (count, length) in enumerate(zip(counts, lengths, strict=True))
    ]
    cache = KvCache(
        num_layers=1, num_blocks=sum(widths), block_tokens=size, num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim, dtype=shape.dtype, device=device,
    )  # fmt: skip
    heads = shape.num_heads + 2 * shape.num_kv_heads
    draw = torch.Generator().manual_seed(1)
    known = torch.randn(sum(widths) * size, heads, shape.head_dim, generator=draw).to(device, shape.dtype)
    cache.write(0, torch.arange(sum(widths) * size, device=device), known[:, shape.num_heads :])
    fresh = torch.randn(sum(counts), heads, shape.head_dim, generator=draw).to(device, shape.dtype)
    batch = BlockTableBatchBuilder(block_tokens=size, device=device).build(StepPlan(tuple(rows)))
    found = VarlenAttention(kernel)(fresh, shape.num_heads, batch, cache, 0, window)
    difference = 0.0
    for row, end in zip(rows, batch.ends, strict=True):
        own = slice(end + 1 - len(row.tokens), end + 1)
        alone = TorchBatchBuilder(block_tokens=size, windows=[window], device=device).build(StepPlan((row,)))
        expected = attend(fresh[own], shape.num_heads, alone, cache, 0, window)
        worst = float((found[own].float() - expected.float()).abs().max())
        difference = max(difference, worst if worst == worst else float("inf"))
    return difference

"""The batched attention against one that looks at every pair of tokens."""

import logging
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from headrace.models.engine.requests import EngineRequest, SamplingParams
from headrace.models.engine.runner import Row, StepPlan
from headrace.models.families.model import BatchBuilder
from headrace.models.tensors.attention import DEFAULT_SCORES, ScoreOptions, attend
from headrace.models.tensors.block_table import BlockTableBatchBuilder
from headrace.models.tensors.kv_cache import KvCache
from headrace.models.tensors.torch_batch import TorchBatchBuilder
from headrace.models.tensors.varlen_attention import AttentionShape, Kernel, VarlenAttention, find_varlen_attention
from tests.models.varlen import varlen_reference

CPU = torch.device("cpu")
HEADS, KV_HEADS, DIM, BLOCK = 6, 2, 8, 4


def cache() -> KvCache:
    return KvCache(
        num_layers=1, num_blocks=200, block_tokens=BLOCK, num_kv_heads=KV_HEADS, head_dim=DIM,
        dtype=torch.float32, device=CPU,
    )  # fmt: skip


def slow(qkv: torch.Tensor, span: int | None, scores: ScoreOptions) -> torch.Tensor:
    """(tokens, heads + 2 * kv_heads, dim) of one request's whole text to (tokens, heads * dim)."""
    num_tokens = qkv.shape[0]
    found = torch.zeros(num_tokens, HEADS, DIM)
    for at in range(num_tokens):
        first = 0 if span is None else max(0, at - span + 1)
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            keys = qkv[first : at + 1, HEADS + shared]
            values = qkv[first : at + 1, HEADS + KV_HEADS + shared]
            products = keys @ qkv[at, head] * (scores.scale or 1 / math.sqrt(DIM))
            if scores.softcap:
                products = scores.softcap * torch.tanh(products / scores.softcap)
            found[at, head] = products.softmax(0) @ values
    return found.view(num_tokens, -1)


@pytest.mark.parametrize(
    ("span", "scores"),
    [
        (None, DEFAULT_SCORES),
        (1, DEFAULT_SCORES),
        (5, DEFAULT_SCORES),
        (1000, DEFAULT_SCORES),
        (None, ScoreOptions(scale=0.2)),
        (5, ScoreOptions(softcap=1.5)),
        (None, ScoreOptions(scale=1.0, softcap=2.0)),
    ],
)
def test_any_schedule_gives_what_looking_at_every_pair_gives(span: int | None, scores: ScoreOptions) -> None:
    builder = TorchBatchBuilder(block_tokens=BLOCK, windows=[span], device=CPU)
    check_any_schedule(
        builder, lambda qkv, batch, store: attend(qkv, HEADS, batch, store, 0, span, scores), span, scores
    )


@pytest.mark.parametrize("span", [None, 1, 7])
def test_attention_by_block_tables_gives_the_same(span: int | None) -> None:
    builder, by_tables = BlockTableBatchBuilder(block_tokens=BLOCK, device=CPU), VarlenAttention(varlen_reference)
    check_any_schedule(
        builder, lambda qkv, batch, store: by_tables(qkv, HEADS, batch, store, 0, span), span, DEFAULT_SCORES
    )


def check_any_schedule(
    builder: BatchBuilder,
    attention: Callable[[torch.Tensor, Any, KvCache], torch.Tensor],
    span: int | None,
    scores: ScoreOptions,
) -> None:
    """Requests of 1 to 60 tokens enter in chunks of random sizes, with blocks in random order."""
    draw = random.Random(6)
    lengths = [1, 2, 60, 41, 40, 39, 17, 8, 4, 3, 25, 33]
    texts = [
        torch.randn(length, HEADS + 2 * KV_HEADS, DIM, generator=torch.Generator().manual_seed(length))
        for length in lengths
    ]
    free = draw.sample(range(200), 200)
    blocks = [[free.pop() for _ in range(-(-length // BLOCK))] for length in lengths]
    params = SamplingParams(max_tokens=1)
    requests = [EngineRequest(str(n), tuple(range(length)), params) for n, length in enumerate(lengths)]
    store, done = cache(), [0] * len(lengths)
    found = [torch.empty(length, HEADS * DIM) for length in lengths]
    while any(count < length for count, length in zip(done, lengths, strict=True)):
        rows = []
        for n, each in enumerate(requests):
            size = min(draw.choice([0, 1, 1, 1, 2, 7, 20]), lengths[n] - done[n])
            if size:
                rows.append(Row(each, each.prompt[done[n] : done[n] + size], done[n], blocks[n], [], sample=False))
        if not rows:
            continue
        batch = builder.build(StepPlan(tuple(rows)))
        assert sorted(batch.ends)[-1] + 1 == sum(len(each.tokens) for each in rows)
        parts = [texts[int(row.request.id)][row.start : row.start + len(row.tokens)] for row in batch.rows]
        result = attention(torch.cat(parts), batch, store)
        for row, end in zip(batch.rows, batch.ends, strict=True):
            n, size = int(row.request.id), len(row.tokens)
            found[n][row.start : row.start + size] = result[end + 1 - size : end + 1]
            done[n] += size
    for text, mine in zip(texts, found, strict=True):
        assert torch.allclose(mine, slow(text, span, scores), atol=1e-5)


SHAPE = AttentionShape(HEADS, KV_HEADS, DIM, frozenset({None, 7}), BLOCK, torch.bfloat16, CPU)


def one_token_more(*given: Any, window_size: tuple[int, int], **named: Any) -> torch.Tensor:
    """A kernel that counts a window as one token longer."""
    return varlen_reference(*given, window_size=(window_size[0] + (window_size[0] >= 0), 0), **named)


def without_tables(*given: Any, window_size: object, enable_gqa: object, seqused_k: object) -> torch.Tensor:
    """A kernel of an earlier torch."""
    raise AssertionError


def too_old(*given: Any, **named: Any) -> torch.Tensor:
    raise RuntimeError("compute capability 7.5 is too old\nand more")


def test_the_first_kernel_with_right_numbers_is_used(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[tuple[str, Kernel]] = [
        ("old", too_old), ("plain", without_tables), ("wrong", one_token_more), ("good", varlen_reference),
    ]  # fmt: skip
    with caplog.at_level(logging.INFO):
        assert find_varlen_attention(SHAPE, lambda: iter(tried)) is not None
        assert "block_table_attention_used kernel=good" in caplog.text
        assert find_varlen_attention(SHAPE, lambda: iter(tried[:3])) is None
    said = caplog.messages[-1]
    assert said.startswith("block_table_attention_unused reason=old: RuntimeError: compute capability 7.5 is too old; ")
    assert "plain: TypeError" in said
    assert "wrong: its numbers are wrong by" in said


def test_the_kernels_of_torch_are_for_16_bits(caplog: pytest.LogCaptureFixture) -> None:
    wide = replace(SHAPE, dtype=torch.float32)
    with caplog.at_level(logging.INFO):
        assert find_varlen_attention(wide) is None
    assert caplog.messages == ["block_table_attention_unused reason=the kernels take no torch.float32"]
    assert find_varlen_attention(wide, lambda: iter([("given", varlen_reference)])) is not None


def test_rows_of_very_different_context_are_not_padded_to_the_longest() -> None:
    params = SamplingParams(max_tokens=1)
    starts = [399, 390, 200, 60, 50, 12, 3, 0]
    rows = [
        Row(EngineRequest(str(n), (1,), params), [1], start, list(range(100)), [], sample=True)
        for n, start in enumerate(starts)
    ]
    groups = TorchBatchBuilder(block_tokens=BLOCK, windows=[None], device=CPU).build(StepPlan(tuple(rows))).groups
    padded = sum(len(group.blocks) for group in groups)
    needed = sum(start // BLOCK + 1 for start in starts)
    assert padded < 1.3 * needed
    assert groups[0].first == 0
    assert groups[-1].last == len(rows)


def test_an_idle_cache_is_zero_and_clear_wipes_only_its_blocks() -> None:
    store = cache()
    slots = torch.arange(3 * BLOCK)
    store.write(0, slots, torch.full((3 * BLOCK, 2 * KV_HEADS, DIM), math.nan))
    store.clear(torch.tensor([0, 2]))
    keys, values = store.gather(0, torch.arange(4), 4)
    for part in (keys, values):
        assert part.shape == (4, KV_HEADS, BLOCK, DIM)
        assert part[[0, 2, 3]].count_nonzero() == 0
        assert part[1].isnan().all()

"""The tensors of a pass, number by number: gathered groups and chunks, block tables, recorded passes, rotations."""

import ctypes
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from headrace.models.engine.requests import EngineRequest, SamplingParams
from headrace.models.engine.runner import Interrupt, Row, Sampled, StepPlan
from headrace.models.families.llama import Rope
from headrace.models.families.lora import LowRank
from headrace.models.families.lora_torch import TorchAdapter, adapted_tokens
from headrace.models.families.model import ModelWithCache
from headrace.models.families.rope import RopeTable, inverse_frequencies, rotate_
from headrace.models.native.choose import supports
from headrace.models.native.layout import interleave_gate_up, pack, pack_low_rank, round_up
from headrace.models.native.library import pointer_of
from headrace.models.runners.decode_graphs import DecodeGraphs, Replay, graph_sizes
from headrace.models.tensors.block_table import BlockTableBatch, BlockTableBatchBuilder
from headrace.models.tensors.kv_cache import KvCache
from headrace.models.tensors.quantised import GROUP, RoundedLinear, hadamard, quantise, round_to_int8
from headrace.models.tensors.torch_batch import TorchBatchBuilder

CPU = torch.device("cpu")


def row(name: str, tokens: list[int], start: int, blocks: list[int], **request: Any) -> Row:
    asked = EngineRequest(name, (1,), SamplingParams(9), **request)
    return Row(asked, tokens, start, blocks, (), sample=True)


PLAN = StepPlan(
    (
        row("short", [5], 2, [7]),
        row("chunk", [1, 2, 3], 3, [9, 2]),
        row("long", [6], 6, [4, 3]),
        row("new", [8, 9], 0, [1]),
    )
)


def test_single_tokens_come_first_by_falling_context_and_chunks_after_them() -> None:
    batch = TorchBatchBuilder(block_tokens=4, windows=[None, 2], device=CPU).build(PLAN)
    assert [each.request.id for each in batch.rows] == ["long", "short", "chunk", "new"]
    assert batch.ends == (0, 1, 4, 6)
    assert batch.tokens.tolist() == [6, 5, 1, 2, 3, 8, 9]
    assert batch.positions.tolist() == [6, 2, 3, 4, 5, 0, 1]
    assert batch.slots.tolist() == [14, 30, 39, 8, 9, 4, 5]
    long, short = batch.groups
    assert [(group.first, group.last, group.blocks.tolist()) for group in batch.groups] == [(0, 1, [4, 3]), (1, 2, [7])]
    masks = {window: mask[0, 0, 0].tolist() for window, mask in long.masks.items() if mask is not None}
    assert masks == {None: [True] * 7 + [False], 2: [False] * 5 + [True, True, False]}
    assert short.masks[None] is not None
    assert short.masks[None][0, 0, 0].tolist() == [True] * 3 + [False]
    chunk, new = batch.chunks
    assert [(one.first, one.last, one.start, one.blocks.tolist()) for one in batch.chunks] == [
        (2, 5, 3, [9, 2]),
        (5, 7, 0, [1]),
    ]
    assert chunk.masks[2] is not None
    assert chunk.masks[2].int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]]
    assert new.masks == {None: None, 2: None}, "it is causal, and the window is as long"


def test_a_group_is_padded_with_blocks_of_its_own_rows() -> None:
    rows = [row("a", [1], 11, [5, 6, 7]), row("b", [1], 7, [8, 9]), row("c", [1], 6, [2, 3])]
    (group,) = TorchBatchBuilder(block_tokens=4, windows=[None], device=CPU).build(StepPlan(tuple(rows))).groups
    assert (group.first, group.last) == (0, 3)
    assert group.blocks.tolist() == [5, 6, 7, 8, 9, 8, 2, 3, 2]
    assert group.masks[None] is not None
    assert group.masks[None].sum(-1)[:, 0, 0].tolist() == [12, 8, 7]
    many = [row(f"{n}", [1], 4 * 2**n, list(range(2**n + 1))) for n in range(7)]
    groups = TorchBatchBuilder(block_tokens=4, windows=[None], device=CPU).build(StepPlan(tuple(many))).groups
    assert [(group.first, group.last) for group in groups] == [(0, 1), (1, 2), (2, 3), (3, 7)], "four at most"


def test_a_block_table_has_every_row_in_the_plans_order() -> None:
    batch = BlockTableBatchBuilder(block_tokens=4, device=CPU).build(PLAN)
    assert batch.rows == PLAN.rows
    assert batch.ends == (0, 3, 4, 6)
    assert batch.tokens.tolist() == [5, 1, 2, 3, 6, 8, 9]
    assert batch.positions.tolist() == [2, 3, 4, 5, 6, 0, 1]
    assert batch.slots.tolist() == [30, 39, 8, 9, 14, 4, 5]
    assert batch.query_starts.tolist() == [0, 1, 4, 5, 7]
    assert batch.context_lengths.tolist() == [3, 6, 7, 2]
    assert batch.block_table.tolist() == [[7, 7], [9, 2], [4, 3], [1, 1]]
    assert (batch.max_query, batch.max_context) == (4, 8)
    one = BlockTableBatchBuilder(block_tokens=4, device=CPU).build(StepPlan((row("a", [1], 16, [1, 2, 3, 4, 5]),)))
    assert (one.max_query, one.max_context, one.block_table.tolist()) == (1, 32, [[1, 2, 3, 4, 5, 1, 1, 1]])


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (10, [1, 2, 4, 8, 10]),
        (17, [1, 2, 4, 8, 16, 17]),
        (40, [1, 2, 4, 8, 16, 24, 32, 40]),
    ],
)
def test_passes_are_recorded_for_these_numbers_of_rows(most: int, sizes: list[int]) -> None:
    assert graph_sizes(most) == sizes


class Echo:
    """A model whose hidden states are its inputs, side by side."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def forward(self, batch: BlockTableBatch, _cache: object) -> torch.Tensor:
        self.sizes.append(len(batch.tokens))
        columns = (batch.tokens, batch.positions, batch.slots, batch.context_lengths, *batch.block_table.T)
        assert batch.query_starts.tolist() == list(range(len(batch.tokens) + 1))
        return torch.stack([column.float() for column in columns], dim=1)


@torch.inference_mode()
def test_a_recorded_pass_is_filled_up_with_its_last_row() -> None:
    model, cleared = Echo(), list[list[int]]()
    cache: Any = SimpleNamespace(block_tokens=4, clear=lambda blocks: cleared.append(blocks.tolist()))
    results: list[torch.Tensor] = []

    def record(compute: Any) -> tuple[Replay, torch.Tensor]:
        result = compute()
        results.append(result)
        return lambda: result.copy_(compute()), result

    loaded: Any = ModelWithCache(model, cache, SimpleNamespace())
    graphs = DecodeGraphs(loaded, [1, 4, 2], context=7, device=CPU, record=record)
    assert (model.sizes, cleared) == ([4, 2, 1], [[0]]), "the largest first; recording has written to block 0"
    builder = BlockTableBatchBuilder(block_tokens=4, device=CPU)

    def plan(*starts: int, **request: Any) -> BlockTableBatch:
        rows = [row(f"{n}", [50 + n], start, [10 * n + 1, 10 * n + 2], **request) for n, start in enumerate(starts)]
        return builder.build(StepPlan(tuple(rows)))

    found = graphs.forward(plan(6, 5, 2))
    expected = [[50, 6, 10, 7, 1, 2], [51, 5, 49, 6, 11, 12], [52, 2, 86, 3, 21, 21]]
    assert found is not None
    assert found.int().tolist() == expected
    assert results[0].int().tolist() == [*expected, expected[-1]]
    (one,) = [graphs.forward(plan(2))]
    assert one is not None
    assert one.int().tolist() == [[50, 2, 6, 3, 1, 2]], "the rest of a wider table stays as it was"
    adapter: Any = SimpleNamespace(key="a")
    for other in (plan(1, 1, 1, 1, 1), plan(2, adapter=adapter), builder.build(PLAN), object()):
        assert graphs.forward(other) is None
    assert len(model.sizes) == 5, "two replays, and nothing else"


def test_keys_and_values_lie_side_by_side_and_pages_are_views() -> None:
    cache = KvCache(
        num_layers=2, num_blocks=3, block_tokens=2, num_kv_heads=1, head_dim=2, dtype=torch.float32, device=CPU
    )
    rows = torch.arange(8.0).view(2, 2, 2)
    cache.write(1, torch.tensor([5, 0]), rows)
    keys, values = cache.gather(1, torch.tensor([2, 0]), 2)
    assert keys[:, 0].tolist() == [[[0, 0], [0, 1]], [[4, 5], [0, 0]]]
    assert values[:, 0].tolist() == [[[0, 0], [2, 3]], [[6, 7], [0, 0]]]
    pages = cache.pages(1)
    assert [part[2, 1, 0].tolist() for part in pages] == [[0, 1], [2, 3]]
    pages[0][2, 1, 0, 0] = 9
    assert cache.gather(1, torch.tensor([2]), 1)[0][0, 0, 1].tolist() == [9, 1]
    assert cache.gather(0, torch.tensor([2]), 1)[0].count_nonzero() == 0


def test_frequencies_are_scaled_as_their_kind_says() -> None:
    plain = [1.0, 0.1, 0.01, 0.001]
    assert inverse_frequencies(Rope(10_000.0), 8).tolist() == pytest.approx(plain)
    linear = inverse_frequencies(Rope(10_000.0, "linear", 4.0), 8)
    assert linear.tolist() == pytest.approx([each / 4 for each in plain])
    scaled = inverse_frequencies(Rope(10_000.0, "llama3", 8.0, 1.0, 4.0, 64), 8).tolist()
    blend = (64 * 0.1 / (2 * math.pi) - 1) / 3
    middle = (1 - blend) * 0.1 / 8 + blend * 0.1
    assert scaled == pytest.approx([1.0, middle, 0.01 / 8, 0.001 / 8])


def test_a_rotation_turns_each_pair_of_halves() -> None:
    table = RopeTable(Rope(100.0), 4, 3, torch.float32, CPU)
    heads = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]])
    rotate_(heads, table.cos[[2]], table.sin[[2]])
    cos, sin = [math.cos(2), math.cos(0.2)], [math.sin(2), math.sin(0.2)]
    assert heads[0, 0].tolist() == pytest.approx([cos[0], -2 * sin[1], sin[0], 2 * cos[1]])
    assert table.cos.shape == (3, 1, 4)


def test_eight_bits_have_a_scale_for_each_group() -> None:
    values = torch.randn(2, GROUP * 2, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(hadamard(hadamard(values)), values, atol=1e-5)
    assert torch.allclose(hadamard(values).norm(dim=1), values.norm(dim=1), atol=1e-4)
    flat = torch.zeros(1, GROUP)
    flat[0, 0] = 8.0
    assert hadamard(flat).tolist() == [[1.0] * GROUP]
    numbers, scales = quantise(torch.cat([flat, torch.zeros(1, GROUP)], dim=1))
    assert (numbers.shape, numbers.dtype, scales.shape) == ((1, 2 * GROUP), torch.int8, (1, 2))
    assert numbers[0].tolist() == [127] * GROUP + [0] * GROUP
    assert scales[0].tolist() == pytest.approx([1 / 127, 0.0])
    rounded = round_to_int8(torch.ones(3, 70))
    assert rounded.shape == (3, 128)
    weight, bias = torch.eye(70)[:5] * 2, torch.arange(5.0)
    found = RoundedLinear(weight, bias)(torch.ones(3, 70, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert found[0].tolist() == pytest.approx([2, 3, 4, 5, 6], abs=0.2)


def test_weights_are_packed_in_panels_of_whole_groups() -> None:
    assert [round_up(count, 32) for count in (0, 1, 32, 33)] == [0, 32, 32, 64]
    weight, bias = torch.arange(33 * 3.0).view(33, 3), torch.arange(33.0)
    packed = pack(weight, bias, torch.float32)
    assert (packed.weight.shape, packed.inputs, packed.panels, packed.format) == ((2, 64, 32), 64, 2, 0)
    assert packed.weight[1, :4, 0].tolist() == [96, 97, 98, 0]
    assert packed.weight[0, 1, :3].tolist() == [1, 4, 7]
    assert packed.scales is None
    assert packed.bias is not None
    assert packed.bias.tolist() == [*range(33), *[0] * 31]
    half = pack(weight, None, torch.bfloat16)
    assert (half.weight.shape, half.bias, half.format) == ((2, 2, 2, 16, 16, 2), None, 1)
    assert half.weight[0, 0, 0, 0, :3].tolist() == [[0, 3], [1, 4], [2, 5]] or half.weight[0, 0, 0, 0, 0].tolist() == [
        0,
        1,
    ]
    eight = pack(weight, bias, torch.int8)
    assert (eight.weight.dtype, eight.format) == (torch.int8, 2)
    assert eight.scales is not None
    assert eight.scales.shape == (2, 1, 32)
    copied = eight.copied(lambda tensor: tensor.clone())
    assert copied.scales is not None
    assert torch.equal(copied.scales, eight.scales)
    assert copied.weight.data_ptr() != eight.weight.data_ptr()


def test_gates_and_ups_take_turns_in_blocks_of_sixteen() -> None:
    gate, up = torch.arange(18.0), torch.arange(100.0, 118.0)
    found = interleave_gate_up(gate, up).tolist()
    assert found[:33] == [*range(16), *range(100, 116), 16]
    assert found[33:48] == [17, *[0] * 14]
    assert found[48:] == [116, 117, *[0] * 14]
    a, b = pack_low_rank(torch.ones(2, 3), torch.arange(34.0).view(17, 2), torch.float32)
    assert (a.shape, b.shape) == ((2, 64), (2, 2, 16))
    assert (a.sum(), b[0, 1, :3].tolist(), b[1, :, 0].tolist(), b[1, 0, 1]) == (6, [1, 3, 5], [32, 33], 0)


@pytest.mark.parametrize(
    ("head_dim", "block_tokens", "expected"),
    [(32, 16, True), (256, 32, True), (288, 16, False), (48, 16, False), (64, 8, False), (16, 16, False)],
)
def test_the_kernels_run_these_sizes(head_dim: int, block_tokens: int, *, expected: bool) -> None:
    config: Any = SimpleNamespace(head_dim=head_dim)
    assert supports(config, block_tokens) is expected


def test_an_adapter_adds_to_its_own_tokens_and_columns() -> None:
    sizes = {"self_attn.q_proj": (2, 2), "self_attn.k_proj": (2, 1), "self_attn.v_proj": (2, 1)}
    sizes |= {"self_attn.o_proj": (2, 2), "mlp.gate_proj": (2, 1), "mlp.up_proj": (2, 1), "mlp.down_proj": (1, 2)}
    low = LowRank(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))
    layers = ({"self_attn.v_proj": low, "mlp.up_proj": low}, {})
    adapter, other = (TorchAdapter(key, layers, sizes, dtype=torch.float32, device=CPU) for key in ("one", "other"))
    rows = [
        row("a", [1, 2], 0, [0], adapter=adapter),
        row("b", [1], 0, [0]),
        row("c", [1], 0, [0], adapter=other),
        row("d", [1], 0, [0], adapter=adapter),
    ]
    groups = adapted_tokens(rows, [1, 2, 3, 4], CPU)
    assert [(one.adapter.key, one.tokens.tolist()) for one in groups] == [("one", [0, 1, 4]), ("other", [3])]
    inputs, result = torch.ones(5, 2), torch.zeros(5, 4)
    adapter.add_to(result, inputs, groups[0].tokens, 0, "qkv")
    assert result.tolist() == [[0, 0, 0, 9], [0, 0, 0, 9], [0] * 4, [0] * 4, [0, 0, 0, 9]]
    adapter.add_to(result, inputs, groups[0].tokens, 1, "qkv")
    assert result.sum() == 27
    gates = torch.zeros(5, 2)
    adapter.add_to(gates, inputs, groups[1].tokens, 0, "gate_up")
    assert gates.tolist() == [[0, 0], [0, 0], [0, 0], [0, 9], [0, 0]]
    stranger: Any = SimpleNamespace(key="theirs")
    with pytest.raises(TypeError, match="another model"):
        adapted_tokens([replace(rows[0], request=replace(rows[0].request, adapter=stranger))], [1], CPU)


@pytest.mark.parametrize(
    ("output", "start", "is_decode"),
    [((), 2, False), ((7,), 2, False), ((7,), 3, True), ((7, 8), 3, False), ((7, 8), 4, True)],
)
def test_a_row_decodes_if_its_newest_token_alone_enters(
    output: tuple[int, ...], start: int, *, is_decode: bool
) -> None:
    request = EngineRequest("r", (1, 2, 3), SamplingParams(9))
    assert Row(request, [1], start, [0], output, sample=True).is_decode is is_decode


def test_a_flag_is_a_c_int_at_its_address_and_only_contiguous_tensors_have_one() -> None:
    interrupt = Interrupt()
    flag = ctypes.cast(interrupt.address, ctypes.POINTER(ctypes.c_int))
    assert (interrupt.is_set, flag[0]) == (False, 0)
    interrupt.set()
    assert (interrupt.is_set, flag[0]) == (True, 1)
    tensor = torch.zeros(2, 3)
    assert (pointer_of(None), pointer_of(tensor)) == (None, tensor.data_ptr())
    with pytest.raises(ValueError, match="contiguous"):
        pointer_of(tensor.T)


def test_a_sampled_row_has_its_accepted_drafts_before_its_token() -> None:
    assert Sampled("r", 7, accepted=(5, 6)).tokens == (5, 6, 7)
    assert Sampled("r", None, accepted=(5, 6)).tokens == (5, 6)
    assert PLAN.num_tokens == 7

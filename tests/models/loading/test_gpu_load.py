"""The measurements and records of loading a model for a GPU, on CPU tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.models.engine.runner import Row, StepPlan
from headrace.models.loading import gpu_load
from headrace.models.loading.kv_pool_size import gpu_blocks, num_blocks
from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.device_runner import DeviceRunner
from headrace.store.errors import CannotLoadHere
from headrace.store.settings import Settings
from tests.models.driving import request
from tests.models.on_cpu_tensors import device_runner
from tests.models.tiny import build, save
from tests.refusals import Naming


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("llama"), tmp_path_factory.mktemp("llama"))


class Recorded:
    """The passes that were run and the graphs that were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: list[list[Row]] = []
        self.graphs: list[tuple[list[int], int]] = []
        run = DeviceRunner.run

        def noted(runner: DeviceRunner, plan: StepPlan) -> Any:
            self.plans.append(list(plan.rows))
            return run(runner, plan)

        def graphs(_loaded: object, sizes: Sequence[int], *, context: int, **_: object) -> None:
            self.graphs.append((list(sizes), context))
            if self.fails:
                raise RuntimeError("no graphs here")

        self.fails = False
        monkeypatch.setattr(DeviceRunner, "run", noted)
        monkeypatch.setattr(gpu_load, "DecodeGraphs", graphs)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


@pytest.mark.parametrize(
    ("given", "num_rows", "num_tokens", "num_blocks_of_a_row"),
    [
        ({}, 256, 8, 1),
        ({"max_slots": 2}, 2, 510, 32),
        ({"step_tokens": 64}, 64, 1, 1),
        ({"max_slots": 4, "step_tokens": 64}, 4, 16, 2),
    ],
)
def test_the_largest_pass_has_the_most_rows_and_tokens(
    folder: Path, recorded: Recorded, given: dict[str, Any], num_rows: int, num_tokens: int, num_blocks_of_a_row: int
) -> None:
    device_runner(folder, Settings(device="cpu", gpu_memory_share=0.95, **given), tables=False, free=64 << 20)
    (rows,) = recorded.plans
    assert (len(rows), {len(row.tokens) for row in rows}) == (num_rows, {num_tokens})
    assert {(row.start, row.sample, tuple(row.blocks)) for row in rows} == {
        (0, True, tuple(range(num_blocks_of_a_row)))
    }
    sampling = rows[0].request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (1.0, 0.9, 0), "the sampling that costs most"
    assert recorded.graphs == []


@pytest.mark.parametrize(
    ("given", "graphs"),
    [
        ({"max_slots": 8, "kv_pool_tokens": 1024}, [([1, 2, 4, 8, 10], 512)]),
        ({"kv_pool_tokens": 1024}, [([1, 2], 512)]),
        ({"max_slots": 8, "kv_pool_tokens": 256}, [([1, 2, 4, 8, 10], 256)]),
        ({"max_slots": 8, "kv_pool_tokens": 1024, "decode_graphs": "off"}, []),
    ],
)
def test_decode_passes_are_recorded_for_the_slots_and_a_quarter_more(
    folder: Path, recorded: Recorded, given: dict[str, Any], graphs: list[tuple[list[int], int]]
) -> None:
    runner = device_runner(folder, Settings(device="cpu", **given), tables=True)
    assert recorded.graphs == graphs
    assert recorded.plans == [], "the pool is a number, so nothing is measured"
    assert (runner.spare_tokens, runner.lookahead_tokens, runner.num_candidates) == (0, 1, 1024)
    recorded.graphs.clear()
    device_runner(folder, Settings(device="cpu", **given), tables=False)
    assert recorded.graphs == []


def test_graphs_that_cannot_be_recorded_are_done_without(
    folder: Path, recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    recorded.fails = True
    device_runner(folder, Settings(device="cpu", kv_pool_tokens=1024), tables=True)
    assert "decode_graphs_unused reason=no graphs here" in caplog.messages


def test_a_card_without_room_says_what_is_free(folder: Path) -> None:
    with pytest.raises(CannotLoadHere) as refused:
        device_runner(folder, Settings(device="cpu", gpu_memory_share=0.9), tables=False, free=3 << 20)
    assert str(refused.value) == Naming("3 of 30 MiB ", "HEADRACE_GPU_MEMORY_SHARE (0.9)")


def test_a_pass_ahead_that_finds_no_memory_is_not_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = device_runner(folder, Settings(device="cpu", kv_pool_tokens=1024), tables=False)
    asked = request([5, 6, 7], "a", max_tokens=6)
    forward, passes = runner.model.forward, []

    def once(batch: Any, cache: Any) -> Any:
        passes.append(batch)
        if len(passes) == 2:
            raise torch.OutOfMemoryError("full")
        return forward(batch, cache)

    monkeypatch.setattr(runner.model, "forward", once)
    (sampled,) = runner.run(StepPlan((Row(asked, asked.prompt, 0, [0], (), sample=True),)))
    assert len(passes) == 2
    plain = runner_for(folder, Settings(device="cpu", dtype="float32", kv_pool_tokens=1024, native_kernels="off"))
    assert [sampled] == plain.run(StepPlan((Row(asked, asked.prompt, 0, [0], (), sample=True),)))


def test_a_pool_ends_where_every_slot_has_its_whole_context(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.models.loading.kv_pool_size.free_bytes", lambda: 1 << 40)
    config: Any = type("Config", (), {"context_window": 100, "num_layers": 1, "num_kv_heads": 1, "head_dim": 8})
    settings = Settings(device="cpu", kv_pool_tokens="auto", max_slots=3, kv_block_tokens=16)
    assert num_blocks(folder, config, settings, torch.float32) == 21, "seven blocks hold 100 tokens"
    monkeypatch.setattr("headrace.models.loading.kv_pool_size.free_bytes", lambda: 5 << 20)
    with pytest.raises(CannotLoadHere) as refused:
        num_blocks(folder, config, settings, torch.float32)
    assert str(refused.value) == Naming(f"{folder}: 5 MiB ")
    assert gpu_blocks(250, 1000, share=0.8, block_bytes=10, context_blocks=2, slots=9) == 5

"""The KV pool's size: a number, or what the free memory allows."""

from pathlib import Path

import pytest
import torch

from headrace.models.families.model_config import ModelConfig
from headrace.models.families.model_folder import read_json
from headrace.models.families.registry import read_architecture
from headrace.models.loading import kv_pool_size
from headrace.models.loading.kv_pool_size import GPU_SLOTS, HEADROOM, gpu_blocks, gpu_slots, num_blocks, token_bytes
from headrace.models.loading.load import load_runner
from headrace.models.loading.torch_load import runner_for
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings
from tests.models.driving import request, run_all
from tests.models.loading.test_load import version
from tests.models.on_cpu_tensors import device_runner
from tests.models.tiny import build, save
from tests.stand_ins import stand_in

AUTO = Settings(device="cpu", dtype="float32", kv_pool_tokens="auto", max_slots=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(build("llama"), tmp_path)


def blocks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, free: int | None, settings: Settings = AUTO
) -> tuple[int, ModelConfig]:
    monkeypatch.setattr(kv_pool_size, "free_bytes", lambda: free)
    config = read_architecture(folder, read_json(folder / "config.json")).config
    return num_blocks(folder, config, settings, torch.float32), config


def weight_bytes(folder: Path) -> int:
    return 2 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_half_of_what_the_weights_and_the_headroom_leave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_architecture(folder, read_json(folder / "config.json")).config
    block = AUTO.kv_block_tokens * token_bytes(config, torch.float32)
    free = weight_bytes(folder) + HEADROOM + 2 * 5 * block
    assert blocks(folder, monkeypatch, free=free)[0] == 5
    assert blocks(folder, monkeypatch, free=free - 1)[0] == 4
    with pytest.raises(ModelLoadError, match="for weights and"):
        blocks(folder, monkeypatch, free=weight_bytes(folder) + HEADROOM + block)


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 2), (torch.bfloat16, 1), (torch.int8, 1)])
def test_half_a_gibibyte_is_left_beside_the_weights_as_they_are_in_memory(
    dtype: torch.dtype, factor: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files have at least two bytes a number."""
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(3 << 20)
    config = stand_in(num_layers=1, num_kv_heads=1, head_dim=8, context_window=1 << 20)
    monkeypatch.setattr(kv_pool_size, "free_bytes", lambda: (512 << 20) + factor * (3 << 20) + (2 << 20))
    block_bytes = 16 * 2 * 8 * (4 if dtype == torch.float32 else 2)
    assert num_blocks(tmp_path, config, AUTO, dtype) == (1 << 20) // block_bytes


def test_no_more_than_every_slot_can_fill(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, config = blocks(folder, monkeypatch, free=1 << 50)
    assert found == -(-config.context_window // AUTO.kv_block_tokens) * AUTO.max_slots


def test_a_number_is_a_number_whatever_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = AUTO.model_copy(update={"kv_pool_tokens": 1024})
    assert blocks(folder, monkeypatch, free=None, settings=settings)[0] == 64
    with pytest.raises(ModelLoadError, match="not known here"):
        blocks(folder, monkeypatch, free=None)


def test_keys_and_values_are_counted_as_wide_as_they_are_stored(folder: Path) -> None:
    config = read_architecture(folder, read_json(folder / "config.json")).config
    width = config.num_layers * 2 * config.num_kv_heads * config.head_dim
    widths = [token_bytes(config, dtype) // width for dtype in (torch.float32, torch.bfloat16, torch.int8)]
    assert widths == [4, 2, 2]


def test_a_model_loads_with_the_pool_that_this_machine_allows(folder: Path) -> None:
    runner = runner_for(folder, AUTO)
    assert runner.num_blocks > 16
    assert len(run_all(runner, [request([5, 6, 7])])["r"]) == 24


def test_the_fakes_pool_needs_no_memory_to_speak_of(tmp_path: Path) -> None:
    assert load_runner(version(tmp_path, "", runner="fake"), AUTO).num_blocks == 16_384 // AUTO.kv_block_tokens


def test_a_gpus_pool_leaves_the_share_that_is_not_its_own() -> None:
    size = {"share": 0.9, "block_bytes": 100, "context_blocks": 8, "slots": 50}
    assert gpu_blocks(5_000, 10_000, **size) == 40  # type: ignore[arg-type]
    assert gpu_blocks(9_900, 10_000, **size | {"slots": 5}) == 40  # type: ignore[arg-type]
    assert gpu_blocks(900, 10_000, **size) == 0  # type: ignore[arg-type]


def test_a_gpus_slots_are_those_that_its_pool_can_feed() -> None:
    assert gpu_slots(16_384, 8192) == 32
    assert gpu_slots(16_384, 128) == 128
    assert gpu_slots(10_000_000, 8192) == GPU_SLOTS
    assert gpu_slots(64, 8192) == 1


@pytest.mark.parametrize("tables", [False, True])
def test_a_gpus_pool_is_sized_after_the_weights_and_a_pass(folder: Path, *, tables: bool) -> None:
    """The default on a GPU: neither a pool nor slots are set."""
    block = 16 * token_bytes(read_architecture(folder, read_json(folder / "config.json")).config, torch.float32)
    settings = Settings(device="cpu", gpu_memory_share=0.95)
    runner = device_runner(folder, settings, tables=tables, free=2000 * block)
    assert runner.num_blocks == 1000  # a twentieth of ten times as much stays free
    assert runner.default_settings == {"max_slots": 31, "step_tokens": 2048}
    assert len(run_all(runner, [request([5, 6, 7])])["r"]) == 24
    number = settings.model_copy(update={"kv_pool_tokens": 1024})
    assert device_runner(folder, number, tables=tables).num_blocks == 64
    with pytest.raises(ModelLoadError, match="for a KV cache"):
        device_runner(folder, settings, tables=tables, free=0)

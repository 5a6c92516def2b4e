"""How a folder becomes a runner on this machine: threads, format, positions, and errors."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from headrace.models.families.model_config import quantized_elsewhere
from headrace.models.families.model_folder import check_folder, read_json, weight_files
from headrace.models.families.registry import read_architecture
from headrace.models.families.safetensors_reader import Weights
from headrace.models.families.transformers_reader import read_with_transformers, refuse_faults
from headrace.models.loading.torch_load import runner_for
from headrace.store.errors import CannotLoadHere, ModelLoadError
from headrace.store.settings import Settings
from tests.models.families.test_llama import LLAMA
from tests.models.tiny import build, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("llama"), tmp_path_factory.mktemp("llama"))


def settings(**given: Any) -> Settings:
    return Settings(**({"device": "cpu", "kv_pool_tokens": 128, "native_kernels": "off"} | given))


class Loads:
    """The calls of a family's loader, which makes nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.asked: list[tuple[int, torch.dtype]] = []
        self.threads: list[int] = []

        def load(folder: Path, config: Any, *, context: int, dtype: torch.dtype, device: torch.device) -> Any:
            self.asked.append((context, dtype))
            if error is not None:
                raise error
            return SimpleNamespace(config=config)

        monkeypatch.setattr("headrace.models.families.llama.load", load)
        monkeypatch.setattr(torch, "set_num_threads", self.threads.append)


@pytest.mark.parametrize(
    ("given", "dtype", "expected"),
    [
        ({}, "auto", (128, torch.bfloat16)),
        ({"dtype": "float16"}, "auto", (128, torch.float16)),
        ({"dtype": "float16", "kv_pool_tokens": 4096}, "float32", (512, torch.float32)),
    ],
)
def test_a_model_has_the_positions_and_the_format_that_it_needs(
    folder: Path, given: dict[str, Any], dtype: str, expected: tuple[int, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch)
    runner = runner_for(folder, settings(**given), dtype=dtype)
    assert loads.asked == [expected]
    assert (runner.num_blocks, runner.context_window, runner.eos_token_ids) == (
        (given.get("kv_pool_tokens", 128)) // 16,
        512,
        {2},
    )
    assert (runner.spare_tokens, runner.lookahead_tokens, runner.default_settings) == (16, 0, {})
    assert loads.threads == []


def test_torch_gets_the_threads_that_the_operator_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    runner_for(folder, settings(torch_threads=3))
    assert loads.threads == [3]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("full")])
def test_too_little_memory_is_a_fault_of_this_machine(
    folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loads(monkeypatch, error)
    with pytest.raises(CannotLoadHere) as refused:
        runner_for(folder, settings())
    assert str(refused.value).startswith(f"{folder}: not enough memory")


@pytest.mark.parametrize(("num_tokens", "fits"), [(0, False), (1, True), (128, True), (129, False)])
def test_a_text_is_scored_if_the_cache_holds_it(folder: Path, num_tokens: int, *, fits: bool) -> None:
    runner = runner_for(folder, settings())
    if fits:
        assert runner.score([5] * num_tokens).shape == (num_tokens, 320)
        return
    with pytest.raises(ValueError, match=f"^{num_tokens} tokens .* 512 "):
        runner.score([5] * num_tokens)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"missing_keys": ["b", "a"]}, "no tensor a"),
        ({"mismatched_keys": [("w", (1, 2), (3, 4))]}, "(3, 4)"),
        ({"error_msgs": ["broken"]}, "['broken']"),
        ({"unexpected_keys": ["more"]}, None),
    ],
)
def test_weights_that_would_be_random_are_refused(found: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    report = {"missing_keys": [], "mismatched_keys": [], "error_msgs": []} | found
    if message is None:
        refuse_faults(tmp_path, report)
        return
    with pytest.raises(ModelLoadError) as refused:
        refuse_faults(tmp_path, report)
    assert str(refused.value).endswith(message)


class Auto:
    """A class of transformers that notes how it is asked, and fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.given: dict[str, Any] = {}

    def from_pretrained(self, _folder: Path, **given: Any) -> Any:
        self.given = given
        raise self.error


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("full"), KeyError("x")])
def test_transformers_reads_no_pickles_no_code_and_no_network(error: Exception, tmp_path: Path) -> None:
    auto = Auto(error)
    expected = ModelLoadError if isinstance(error, KeyError) else type(error)
    with pytest.raises(expected):
        read_with_transformers(auto, tmp_path, dtype=torch.float32, attention="eager")
    assert auto.given == {
        "dtype": torch.float32,
        "attn_implementation": "eager",
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": True,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }


def message_of(call: Any, *arguments: Any) -> str:
    with pytest.raises(ModelLoadError) as refused:
        call(*arguments)
    return str(refused.value)


def test_a_folder_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert f"{path} is missing" in message_of(read_json, path)
    path.write_text("[1]")
    assert f"{path} is not a " in message_of(read_json, path)
    path.write_text("{")
    assert f"{path} cannot be read" in message_of(read_json, path)
    assert f"{path} " in message_of(check_folder, path)
    assert "no model.safetensors" in message_of(weight_files, tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"")
    assert "GGUF weights (m.gguf)" in message_of(weight_files, tmp_path)
    (tmp_path / "out").symlink_to(tmp_path.parent)
    assert f"{tmp_path / 'out'} is a link" in message_of(check_folder, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"none")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    assert str(tmp_path / "model.safetensors") in message_of(Weights, tmp_path)


def test_a_tensor_has_the_name_and_the_shape_that_are_asked_for(folder: Path) -> None:
    with Weights(folder) as weights:
        assert "model.norm.weight" in weights
        assert "model.norm.bias" not in weights
        assert weights.get("model.norm.weight", (128,)).shape == (128,)
        assert "no tensor model.norm.bias" in message_of(weights.get, "model.norm.bias", (128,))
        assert message_of(weights.get, "model.norm.weight", (64,)).endswith("(64,)")


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        ({"quant_method": "awq"}, "awq"),
        ({}, "by a method"),
        ("awq", "by a method"),
    ],
)
def test_weights_of_another_quantization_name_what_runs_them(quantization: object, method: str) -> None:
    found = quantized_elsewhere(quantization)
    assert f"({method}" in found
    assert "--engine vllm" in found


def test_a_family_without_the_package_of_the_others_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_folder: Path, _raw: object) -> Any:
        raise ImportError("no", name="transformers")

    monkeypatch.setattr("headrace.models.families.transformers_fallback.read_config", missing)
    with pytest.raises(CannotLoadHere) as refused:
        read_architecture(Path(), LLAMA | {"hidden_act": "gelu"})
    assert "hidden_act 'gelu'" in str(refused.value)
    assert "package transformers" in str(refused.value)

"""How encoders of transformers are read from a folder: format, device, threads, layers beside them, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from headrace.features.encoders.embed.inputs import Dense
from headrace.features.encoders.torch_encoder import read_dense
from headrace.features.encoders.torch_images import image_processor
from headrace.models.engine.runner import RunnerBroken
from headrace.models.runners import encoder
from headrace.models.runners.encoder import read_model
from headrace.models.runners.torch_runner import translate_torch_errors
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings
from tests.models.runners.making import CPU
from tests.refusals import Naming


class Reader:
    """Stands for transformers' reader of folders: notes the formats, and misses a tensor of the pooler."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dtypes: list[torch.dtype] = []
        self.threads: list[int] = []
        self.model = torch.nn.Linear(2, 2)
        monkeypatch.setattr(encoder, "weight_files", lambda folder: [])
        monkeypatch.setattr(encoder, "read_with_transformers", self.read)
        monkeypatch.setattr(torch, "set_num_threads", self.threads.append)

    def read(self, _auto: Any, _folder: Path, *, dtype: torch.dtype) -> Any:
        self.dtypes.append(dtype)
        return self.model, {"missing_keys": ["pooler.dense.weight"], "mismatched_keys": [], "error_msgs": []}


@pytest.mark.parametrize(
    ("setting", "given", "expected"),
    [
        ("auto", "auto", torch.float32),
        ("bfloat16", "auto", torch.bfloat16),
        ("bfloat16", "float32", torch.float32),
        ("auto", "float16", torch.float16),
    ],
)
def test_an_encoder_is_read_in_its_format_and_without_gradients(
    setting: str, given: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(monkeypatch)
    settings = Settings(device="cpu", dtype=setting)
    model, device = read_model(None, Path("m"), settings, dtype=given, unused="pooler.")
    assert (reader.dtypes, device, reader.threads) == ([expected], CPU, [])
    assert (model.training, model.weight.requires_grad) == (False, False)
    read_model(None, Path("m"), Settings(device="cpu", torch_threads=3), dtype=given, unused="pooler.")
    assert reader.threads == [3]


@pytest.mark.parametrize("unused", [None, "cls."])
def test_a_tensor_that_is_missing_and_used_is_refused(unused: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    Reader(monkeypatch)
    with pytest.raises(ModelLoadError) as refused:
        read_model(None, Path("m"), Settings(device="cpu"), dtype="auto", unused=unused)
    assert str(refused.value) == Naming("m has no ", "pooler.dense.weight")


ROW = torch.tensor([[1.0, 2.0]])
WEIGHT = torch.tensor([[3.0, 4.0], [0.5, -1.0], [0.0, 0.25]])


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("has_tanh", [True, False])
def test_a_dense_layer_is_read_from_its_file(tmp_path: Path, *, has_bias: bool, has_tanh: bool) -> None:
    (tmp_path / "2_Dense").mkdir()
    tensors = {"linear.weight": WEIGHT.bfloat16()} | ({"linear.bias": torch.ones(3).half()} if has_bias else {})
    save_file(tensors, tmp_path / "2_Dense" / "model.safetensors")
    layer = read_dense(tmp_path, Dense("2_Dense", 3, has_tanh), CPU)
    expected = torch.tensor([[11.0, -1.5, 0.5]]) + (1 if has_bias else 0)
    assert torch.equal(layer(ROW), expected.tanh() if has_tanh else expected)
    assert not any(tensor.requires_grad for tensor in layer.parameters())


def test_a_dense_layer_without_weights_that_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "2_Dense" / "model.safetensors"
    path.parent.mkdir()
    with pytest.raises(ModelLoadError) as refused:
        read_dense(tmp_path, Dense("2_Dense", 3, has_tanh=True), CPU)
    assert str(refused.value) == Naming(f"{path} is missing", "safetensors")
    for tensors in ({"linear.weight": WEIGHT[:2]}, {"weight": WEIGHT}, {"linear.weight": WEIGHT, "more": WEIGHT + 1}):
        save_file(tensors, path)
        with pytest.raises(ModelLoadError) as refused:
            read_dense(tmp_path, Dense("2_Dense", 3, has_tanh=True), CPU)
        assert str(refused.value).startswith(f"{path} cannot be read: ")


def test_an_image_processor_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "Nobody's"}))
    with pytest.raises(ModelLoadError) as refused:
        image_processor(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}: the image processor ")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (torch.AcceleratorError("lost"), RunnerBroken, ": lost"),
        (RuntimeError("DefaultCPUAllocator: can't"), MemoryError, "DefaultCPUAllocator: can't"),
        (RuntimeError("shapes differ"), RuntimeError, "shapes differ"),
    ],
)
def test_errors_of_torch_become_errors_with_a_reason(error: Exception, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as found, translate_torch_errors():
        raise error
    assert (type(found.value), str(found.value)) == (kind, Naming(said))

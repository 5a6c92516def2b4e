"""Architectures without a fast path: loading, packing and refusals. fidelity/ tests their outputs."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Model

from headrace.models.families import transformers_model
from headrace.models.families.llama import LlamaConfig
from headrace.models.families.model_folder import read_json
from headrace.models.families.registry import read_architecture
from headrace.models.families.transformers_model import TransformersModel
from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.torch_runner import TorchRunner
from headrace.models.tensors.attention import DEFAULT_SCORES
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings
from tests.models.driving import random_prompts
from tests.models.others import VOCAB, build_other
from tests.models.tiny import save


def runner_of(folder: Path, dtype: str = "float32", kv_pool_tokens: int = 4096) -> TorchRunner:
    return runner_for(folder, Settings(device="cpu", dtype=dtype, kv_pool_tokens=kv_pool_tokens, kv_block_tokens=8))


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "qwen3_moe"])
def test_bfloat16_is_close(model_type: str, tmp_path: Path) -> None:
    folder = save(build_other(model_type), tmp_path)
    text = random_prompts(3, longest=60, vocab=VOCAB)[2]
    exact, close = (runner_of(folder, dtype).score(text) for dtype in ("float32", "bfloat16"))
    assert 0 < (exact - close).norm() / exact.norm() < 0.2


def test_a_llama_with_an_option_that_the_fast_path_lacks_is_no_error(tmp_path: Path) -> None:
    folder = save(build_other("llama"), tmp_path)
    raw = read_json(folder / "config.json")
    assert not isinstance(read_architecture(folder, raw).config, LlamaConfig)
    (folder / "config.json").write_text(json.dumps(raw | {"rope_parameters": {"rope_type": "default"}}))
    assert isinstance(read_architecture(folder, read_json(folder / "config.json")).config, LlamaConfig)


def num_plain_layers() -> int:
    """The linear layers of torch that are in memory."""
    gc.collect()
    return sum(type(one) is nn.Linear for one in gc.get_objects())


def test_linear_layers_are_packed_and_their_plain_weights_dropped(tmp_path: Path) -> None:
    folder = save(build_other("starcoder2"), tmp_path)
    before = num_plain_layers()
    runner = runner_of(folder)
    assert isinstance(runner.model, TransformersModel)
    assert num_plain_layers() <= before


def test_an_attention_that_is_not_the_models_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a new version of transformers hands over something that ours does not look at."""
    folder = save(build_other("granite"), tmp_path)
    monkeypatch.setattr(transformers_model, "ScoreOptions", lambda scale, softcap: DEFAULT_SCORES)
    with pytest.raises(ModelLoadError, match=r"logits are [0-9.]+% off"):
        runner_of(folder)


def test_positions_that_are_not_heeded_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(build_other("gpt2"), tmp_path)
    forward = GPT2Model.forward

    def counting_from_zero(self: GPT2Model, *arguments: Any, **named: Any) -> Any:
        return forward(self, *arguments, **named | {"position_ids": None})

    monkeypatch.setattr(GPT2Model, "forward", counting_from_zero)
    with pytest.raises(ModelLoadError, match="logits are"):
        runner_of(folder)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = save(build_other("gpt2"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = "transformer.h.1.mlp.c_fc.weight"
    left = {key: tensor for key, tensor in weights.items() if key != name}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=f"no tensor {name}"):
        runner_of(folder)
    save_file(weights | {name: torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"\(64, 256\)"):
        runner_of(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="pickled weights"):
        runner_of(folder)

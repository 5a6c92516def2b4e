"""A small GGUF file converted number by number. The tokenizer's conversion is transformers' own."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from headrace.models.loading import gguf_convert
from headrace.models.loading.gguf_convert import convert
from headrace.store.errors import ModelLoadError
from tests.refusals import Naming

NAMES = {
    "token_embd.weight": ("model.embed_tokens.weight", (5, 8)),
    "output_norm.weight": ("model.norm.weight", (8,)),
    "blk.0.attn_norm.weight": ("model.layers.0.input_layernorm.weight", (8,)),
    "blk.0.attn_q.weight": ("model.layers.0.self_attn.q_proj.weight", (8, 8)),
    "blk.0.attn_k.weight": ("model.layers.0.self_attn.k_proj.weight", (4, 8)),
    "blk.0.attn_v.weight": ("model.layers.0.self_attn.v_proj.weight", (4, 8)),
    "blk.0.attn_output.weight": ("model.layers.0.self_attn.o_proj.weight", (8, 8)),
    "blk.0.ffn_norm.weight": ("model.layers.0.post_attention_layernorm.weight", (8,)),
    "blk.0.ffn_gate.weight": ("model.layers.0.mlp.gate_proj.weight", (6, 8)),
    "blk.0.ffn_up.weight": ("model.layers.0.mlp.up_proj.weight", (6, 8)),
    "blk.0.ffn_down.weight": ("model.layers.0.mlp.down_proj.weight", (8, 6)),
}


class Tokenizers:
    """Stands for transformers' converter."""

    asked: tuple[Any, ...] = ()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **named: Any) -> type["Tokenizers"]:
        cls.asked = (*arguments, named)
        return cls

    @classmethod
    def save_pretrained(cls, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


@pytest.fixture(autouse=True)
def _tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_convert, "AutoTokenizer", Tokenizers)


def tensors(*more: str) -> dict[str, np.ndarray]:
    shapes = {name: shape for name, (_, shape) in NAMES.items()} | dict.fromkeys(more, (5, 8))
    return {
        name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1000 * number
        for number, (name, shape) in enumerate(shapes.items())
    }


def write(path: Path, named: dict[str, np.ndarray], architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(6)
    writer.add_context_length(99)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(0.25)
    writer.add_rope_freq_base(500.0)
    writer.add_vocab_size(5)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    for name, values in named.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def turned(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Return the rows of each head with the even ones before the odd ones."""
    heads = values.reshape(num_heads, -1, values.shape[1])
    return np.concatenate([np.concatenate([head[0::2], head[1::2]]) for head in heads])


@pytest.mark.parametrize("has_head", [True, False])
def test_a_file_becomes_a_folder_with_the_same_numbers(tmp_path: Path, *, has_head: bool) -> None:
    named = tensors(*(["output.weight"] if has_head else []))
    source, folder = write(tmp_path / "m.gguf", named), tmp_path / "made"
    folder.mkdir()
    done: list[tuple[int, int]] = []
    convert(source, folder, lambda number, total: done.append((number, total)))
    assert done == [(number, len(named)) for number in range(1, len(named) + 1)]
    found = load_file(folder / "model.safetensors")
    expected = {NAMES[name][0]: values for name, values in named.items() if name in NAMES}
    expected |= {"lm_head.weight": named["output.weight"]} if has_head else {}
    for name, num_heads in (("q_proj", 2), ("k_proj", 1)):
        place = f"model.layers.0.self_attn.{name}.weight"
        expected[place] = turned(expected[place], num_heads)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0, "so that the tensors can be mapped"
    assert json.loads((folder / "config.json").read_text()) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": 8,
        "intermediate_size": 6,
        "max_position_embeddings": 99,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "rms_norm_eps": 0.25,
        "rope_theta": 500.0,
        "vocab_size": 5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "tie_word_embeddings": not has_head,
    }
    ends = json.loads((folder / "generation_config.json").read_text())
    assert ends == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    assert Tokenizers.asked == (tmp_path, {"gguf_file": "m.gguf", "trust_remote_code": False})
    assert (folder / "tokenizer.json").exists()


@pytest.mark.parametrize("name", ["blk.0.attn_x.weight", "blk.attn_q.weight", "lay.0.attn_q.weight"])
def test_a_tensor_of_unknown_meaning_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as refused:
        convert(write(tmp_path / "m.gguf", tensors(name)), tmp_path, lambda _done, _total: None)
    assert str(refused.value) == Naming(f"tensor of unknown meaning: {name}")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as refused:
        convert(write(tmp_path / "m.gguf", {}, "gemma"), tmp_path, lambda _done, _total: None)
    assert str(refused.value) == Naming("'gemma'", "supported: llama")

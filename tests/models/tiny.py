"""Tiny models of every family, with random weights from a fixed seed, written as Hugging Face folders."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 320

_SIZES: dict[str, object] = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _llama(**changes: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**(_SIZES | changes)))


def _mistral(**changes: object) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**(_SIZES | changes)))


def _qwen2(**changes: object) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**(_SIZES | changes)))


def _qwen3(**changes: object) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**(_SIZES | changes)))


MODELS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "llama, tied embeddings": lambda: _llama(tie_word_embeddings=True),
    "llama, one key-value head": lambda: _llama(num_key_value_heads=1),
    "llama, a key-value head each": lambda: _llama(num_key_value_heads=4),
    "llama, biases": lambda: _llama(attention_bias=True, mlp_bias=True),
    "llama, llama3 rope": lambda: _llama(rope_parameters=_LLAMA3),
    "llama, linear rope": lambda: _llama(rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}),
    "mistral, sliding window": lambda: _mistral(sliding_window=11),
    "mistral, no window": lambda: _mistral(sliding_window=None),
    "qwen2": _qwen2,
    "qwen2, window in upper layers": lambda: _qwen2(use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": lambda: _qwen3(head_dim=64),
}


def build(name: str) -> PreTrainedModel:
    """Return a model in which every weight matters: norms and biases are random too, and wide enough to avoid ties."""
    torch.manual_seed(1234)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.5 if parameter_name.endswith("bias") else 0.15)
    return model


def save(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    """Write a model and return its folder."""
    model.save_pretrained(folder, **options)
    return folder


def save_tokenizer(folder: Path, *, marks: Sequence[str] = (), template: str | None = None) -> Path:
    """Write a byte-level tokenizer of fewer tokens than ``VOCAB`` into a model's folder, and return the folder.

    The special tokens, every byte, and some tokens of several bytes that span what JSON keeps apart; and ``marks``, as
    added tokens that are not special. ``template``: the chat template.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = ['{"', '":', '",', "00", "in", "er", "ab", "}]", ',"']
    names = ["<pad>", "<s>", "</s>", *letters, *pairs]
    backend = tokenizers.Tokenizer(
        models.BPE({name: index for index, name in enumerate(names)}, [(pair[0], pair[1]) for pair in pairs])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(names[:3])
    backend.add_tokens([tokenizers.AddedToken(mark, special=False, normalized=False) for mark in marks])
    backend.save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder

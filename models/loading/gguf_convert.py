"""Converts a GGUF file to a Hugging Face folder: float32 safetensors, configuration, tokenizer. Workers never do this.

Supports the ``llama`` architecture of GGUF. GGUF stores query and key rows in another order than transformers: the
rotary pairs are interleaved. transformers converts the tokenizer.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from headrace.models.families.model_folder import SINGLE_FILE
from headrace.store.errors import ModelLoadError

Array = NDArray[np.float32]

_TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: Path, folder: Path, on_tensor: Callable[[int, int], None]) -> None:
    """Write the model in the GGUF file ``source`` into ``folder``; ``on_tensor`` is called with (done, total).

    Raises ModelLoadError if the file is of another architecture.
    """
    reader = gguf.GGUFReader(source)
    config = _config(reader)
    named = {_hf_name(tensor.name): tensor for tensor in reader.tensors}
    config["tie_word_embeddings"] = "lm_head.weight" not in named
    with (folder / SINGLE_FILE).open("wb") as file:
        file.write(_header(named))
        for done, (name, tensor) in enumerate(named.items(), start=1):
            file.write(_values(tensor, name, config).data)
            on_tensor(done, len(named))
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    _write_json(folder / "config.json", config)
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", ends)


def _header(named: Mapping[str, gguf.ReaderTensor]) -> bytes:
    """Return the header of a safetensors file: the length of a JSON object, and the object with the tensor offsets.

    The writer of the library is not used, because it needs all tensors in memory twice.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in named.items():
        shape = [int(size) for size in reversed(tensor.shape)]  # GGUF counts the innermost dimension first
        start, end = end, end + math.prod(shape) * np.dtype(np.float32).itemsize
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)  # aligned, so that the tensors can be mapped
    return len(header).to_bytes(8, "little") + header


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _config(reader: gguf.GGUFReader) -> dict[str, Any]:
    def field(name: str) -> Any:
        found = reader.get_field(name)
        if found is None:
            raise ModelLoadError(f"the GGUF file has no {name}")
        return found.contents()

    architecture = field("general.architecture")
    if architecture != "llama":
        raise ModelLoadError(f"GGUF architecture {architecture!r} cannot be converted; supported: llama")
    heads = field("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "max_position_embeddings": field("llama.context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": field("llama.block_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": field("llama.embedding_length") // heads,
        "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": field("llama.rope.freq_base"),
        "vocab_size": field("llama.vocab_size"),
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
    }


def _hf_name(name: str) -> str:
    """Return the name in transformers: ``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight``."""
    if name in _TOP_LEVEL:
        return _TOP_LEVEL[name]
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _IN_LAYER:
        raise ModelLoadError(f"the GGUF file has a tensor of unknown meaning: {name}")
    return f"model.layers.{parts[1]}.{_IN_LAYER[parts[2]]}.{parts[3]}"


def _values(tensor: gguf.ReaderTensor, name: str, config: dict[str, Any]) -> Array:
    values: Array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    if ".q_proj." in name:
        values = _restore_order(values, config["num_attention_heads"])
    if ".k_proj." in name:
        values = _restore_order(values, config["num_key_value_heads"])
    return np.ascontiguousarray(values)


def _restore_order(rows: Array, num_heads: int) -> Array:
    """Undo the interleaving of the two halves of each head. Input and result are (heads * head_dim, in)."""
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

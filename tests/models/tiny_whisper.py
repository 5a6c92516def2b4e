"""A tiny Whisper with random weights, as a Hugging Face folder: a window of two seconds, two languages."""

from pathlib import Path
from typing import Final

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

WINDOW_S: Final = 2
RATE: Final = 16_000
MAX_LENGTH: Final = 14
_SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)


def build_whisper(folder: Path, *, multilingual: bool = True, seed: int = 5, width: int = 32, layers: int = 1) -> Path:
    """Write the model and return its folder. ``layers``: of the encoder, and of the decoder."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    times = [f"<|{number * 0.02:.2f}|>" for number in range(WINDOW_S * 50 + 1)]
    names = [*letters, *_SPECIAL, *times]
    ids = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.BPE({name: ids[name] for name in letters}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in _SPECIAL])
    backend.add_tokens([tokenizers.AddedToken(name, special=False) for name in times])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    common = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    model = _random(len(names), seed, common, width, layers)
    model.generation_config = GenerationConfig(
        **common,
        max_length=MAX_LENGTH,
        is_multilingual=multilingual,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        **(
            {
                "lang_to_id": {name: ids[name] for name in ("<|en|>", "<|de|>")},
                "task_to_id": {name: ids[f"<|{name}|>"] for name in ("translate", "transcribe")},
            }
            if multilingual
            else {}
        ),
        suppress_tokens=[number for name, number in ids.items() if name in _SPECIAL[1:]],
        begin_suppress_tokens=[end],
    )
    model.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=WINDOW_S).save_pretrained(folder)
    return folder


def _random(
    vocab_size: int, seed: int, common: dict[str, int], width: int, layers: int
) -> WhisperForConditionalGeneration:
    """A model whose text depends on what it hears."""
    config = WhisperConfig(
        vocab_size=vocab_size,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        max_source_positions=WINDOW_S * 50,
        max_target_positions=32,
        **common,
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "embed_positions" not in name or "decoder" in name:
                parameter.normal_(0, 0.25)
    return model


def theirs(folder: Path) -> WhisperTokenizer:
    """The tokenizer as transformers reads it."""
    return WhisperTokenizer.from_pretrained(folder)

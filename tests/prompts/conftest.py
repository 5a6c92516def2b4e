"""The demo model's folder, and a byte-fallback tokenizer like Llama 2's, both as bytes by name."""

import json
from pathlib import Path

import pytest

from headrace.models.catalog import fetch
from headrace.models.families.model_folder import small_files

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The demo model's folder, fetched once a checkout."""
    return fetch("smollm2", REPOSITORY / ".headrace" / "models")


@pytest.fixture(scope="session")
def smollm2_files(smollm2: Path) -> dict[str, bytes]:
    return small_files(smollm2)


@pytest.fixture(scope="session")
def byte_fallback_files() -> dict[str, bytes]:
    """A SentencePiece-like vocabulary: words with their space, and one token for every byte."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁Hello", "▁wor", "ld", "漢", "!", "e"]
    backend = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": token_id,
                "content": content,
                "special": True,
                "normalized": False,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
            }
            for token_id, content in enumerate(["<unk>", "<s>", "</s>"])
        ],
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": [],
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
        },
    }
    return {"tokenizer.json": json.dumps(backend).encode(), "config.json": b'{"eos_token_id": 2}'}

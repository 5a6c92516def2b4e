"""The folder of a model that transcribes: its window, its positions and its languages."""

import json
from typing import Any

import pytest

from headrace.features.transcribe.transcriber_folder import TranscriberSettings, read_transcriber
from headrace.store.errors import ModelLoadError

FILES: dict[str, dict[str, Any]] = {
    "config.json": {"max_source_positions": 1500},
    "preprocessor_config.json": {"chunk_length": 20, "sampling_rate": 8000},
    "generation_config.json": {"no_timestamps_token_id": 9, "lang_to_id": {"<|en|>": 1, "<|de|>": 2}},
}


def read(**changes: dict[str, Any]) -> TranscriberSettings:
    files = {name: content | changes.get(name.partition("_")[0], {}) for name, content in FILES.items()}
    return read_transcriber({name: json.dumps(content).encode() for name, content in files.items()})


def test_a_folder_is_read() -> None:
    assert read() == TranscriberSettings(20, 8000, 1500, {1: "en", 2: "de"})
    assert read(generation={"is_multilingual": True}).languages == {1: "en", 2: "de"}
    assert read(generation={"is_multilingual": False}).languages == {}
    assert read(generation={"lang_to_id": None}).languages == {}
    assert read().tokens_of(2) == 150


def test_a_folder_without_its_files_is_refused_with_the_remedy() -> None:
    for name, said in (
        ("preprocessor_config.json", "preprocessor_config.json is missing"),
        ("generation_config.json", "generation_config.json has no no_timestamps_token_id"),
        ("config.json", "config.json: max_source_positions "),
    ):
        files = {other: json.dumps(content).encode() for other, content in FILES.items() if other != name}
        with pytest.raises(ModelLoadError) as refused:
            read_transcriber(files)
        assert refused.value.message.startswith(said)

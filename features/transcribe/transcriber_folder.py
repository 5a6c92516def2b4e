"""The folder of a model that transcribes (Whisper): its window, its positions and its languages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from headrace.prompts.folder_json import json_object, whole_number
from headrace.store.errors import ModelLoadError

GENERATION: Final = "generation_config.json"
PREPROCESSOR: Final = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class TranscriberSettings:
    """Facts of a model. A chunk of ``window_s`` seconds at ``rate`` samples a second takes ``num_positions``.

    ``languages``: ISO 639-1 codes by the id of their token; empty if the model knows English alone.
    """

    window_s: int
    rate: int
    num_positions: int
    languages: Mapping[int, str]

    def tokens_of(self, seconds: float) -> int:
        """Return how many tokens so much audio counts as: its positions in the encoder."""
        return max(1, round(seconds * self.num_positions / self.window_s))


FAKE: Final = TranscriberSettings(30, 16_000, 1500, {1: "en", 2: "de"})
"""Of the transcriber without weights."""


def is_transcriber(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of a model that transcribes."""
    return config.get("model_type") == "whisper"


def read_transcriber(files: Mapping[str, bytes]) -> TranscriberSettings:
    """Return the settings of a folder with these small files. Raises ModelLoadError."""
    config = json_object(files, "config.json")
    features, generation = json_object(files, PREPROCESSOR), json_object(files, GENERATION)
    if not features:
        raise ModelLoadError(f"{PREPROCESSOR} is missing: a model that transcribes needs it")
    if "no_timestamps_token_id" not in generation:
        raise ModelLoadError(f"{GENERATION} has no no_timestamps_token_id: take the one that belongs to the weights")
    ids = generation.get("lang_to_id") if generation.get("is_multilingual", True) else None
    languages = {int(token): str(name).strip("<|>") for name, token in (ids or {}).items()}
    return TranscriberSettings(
        whole_number(features, "chunk_length"),
        whole_number(features, "sampling_rate"),
        whole_number(config, "max_source_positions"),
        languages,
    )

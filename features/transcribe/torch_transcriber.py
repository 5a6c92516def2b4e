"""Whisper on torch: one pass of transformers' own model over chunks of audio, one transcript a chunk out.

Every chunk is padded to the model's window, so the chunks of many jobs go together as they are. Decoding is greedy.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from headrace.features.transcribe.transcriber_folder import TranscriberSettings, read_transcriber
from headrace.features.transcribe.transcription import ChunkTranscript, TokenSegment
from headrace.models.engine.requests import EncodeRow, NumericalError
from headrace.models.families.model_folder import small_files
from headrace.models.runners.encoder import read_model
from headrace.models.runners.torch_runner import translate_torch_errors
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings

_MOST_ROUNDS: Final = 100
"""The model goes on where its last segment of a chunk ended. More rounds for 30 s come of a model that is stuck."""


class TorchTranscriber:
    """Transcribes with one model on one device. A request's options are ``ChunkOptions``."""

    def __init__(self, model: Any, extractor: Any, settings: TranscriberSettings, device: torch.device) -> None:
        self.context_window = settings.num_positions
        self.model = model
        self._extractor = extractor
        self._languages = settings.languages
        self._ids = {name: token for token, name in settings.languages.items()}
        self._rate = settings.rate
        self._device = device
        # The tokens of Whisper's vocabularies that are no text begin with the one that ends a sequence.
        self._first_special = int(model.config.eos_token_id)

    @torch.inference_mode()
    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return the transcript of each chunk."""
        with translate_torch_errors():
            features = self._features(rows)
            ids = self._language_ids(features, [row.options.language for row in rows])
            options: dict[str, Any] = {}
            if self._languages:
                options = {"task": "transcribe", "language": [f"<|{self._languages[one]}|>" for one in ids]}
            found = self.model.generate(
                features,
                return_timestamps=True,
                return_segments=True,
                monitor_progress=_Rounds(),
                logits_processor=[_Finite(is_alone=len(rows) == 1)],
                **options,
            )
            return [
                ChunkTranscript(language, self._segments(segments)).as_bytes
                for language, segments in zip(ids, found["segments"], strict=True)
            ]

    def _features(self, rows: Sequence[EncodeRow]) -> torch.Tensor:
        samples = [np.frombuffer(row.options.chunks[row.index], "<f4") for row in rows]
        made = self._extractor(samples, sampling_rate=self._rate, return_tensors="pt").input_features
        return torch.as_tensor(made).to(self._device, self.model.dtype)

    def _language_ids(self, features: torch.Tensor, given: Sequence[str | None]) -> list[int]:
        """Return the token of each row's language, 0 if the model has none. Those that were not given are detected."""
        if not self._languages:
            return [0] * len(given)
        ids = [0 if name is None else self._ids[name] for name in given]
        unknown = [place for place, token in enumerate(ids) if not token]
        if unknown:
            frames = features.shape[-1]
            detected = self.model.detect_language(features[unknown], num_segment_frames=frames).tolist()
            for place, token in zip(unknown, detected, strict=True):
                ids[place] = int(token)
        return ids

    def _segments(self, segments: Sequence[Any]) -> tuple[TokenSegment, ...]:
        found = []
        for one in segments:
            tokens = tuple(token for token in one["tokens"].tolist() if token < self._first_special)
            if tokens:
                found.append(TokenSegment(round(1000 * float(one["start"])), round(1000 * float(one["end"])), tokens))
        return tuple(found)


class _Finite:
    """Ends a pass with logits that are not finite. They would become tokens that mean nothing.

    A chunk that ``is_alone`` in its pass fails with NumericalError. Several chunks are computed again, each apart.
    """

    def __init__(self, *, is_alone: bool) -> None:
        self._is_alone = is_alone

    def __call__(self, _ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        # Whisper's own rules make minus infinity of tokens that may not follow.
        if not logits.amax(dim=-1).isfinite().all():
            raise NumericalError if self._is_alone else RuntimeError("the logits of a chunk are not finite")
        return logits


class _Rounds:
    """Ends a pass that does not come to an end."""

    def __init__(self) -> None:
        self._left = _MOST_ROUNDS

    def __call__(self, _progress: torch.Tensor) -> None:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError(f"a chunk was not transcribed in {_MOST_ROUNDS} rounds")


def transcriber_for(folder: Path, settings: Settings, *, dtype: str = "auto") -> TorchTranscriber:
    """Return a transcriber for a model folder. ``dtype`` goes before the setting; ``auto`` is float32.

    Raises ModelLoadError if weights are missing, pickled, not finite, or do not fit the configuration.
    """
    found = read_transcriber(small_files(folder))
    # The output layer is the embedding of the tokens.
    model, device = read_model(WhisperForConditionalGeneration, folder, settings, dtype=dtype, unused="proj_out.")
    if not all(bool(tensor.isfinite().all()) for tensor in model.parameters()):
        raise ModelLoadError(f"{folder} has weights that are not finite")
    extractor = WhisperFeatureExtractor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return TorchTranscriber(model, extractor, found, device)

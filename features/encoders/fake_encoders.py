"""Encoders without weights: a vector or a score is a hash of the tokens or pixels, so equal inputs have equal ones."""

import struct
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from headrace.features.encoders.classifier_folder import ClassifierSettings, Head
from headrace.features.encoders.image_folder import ImageClassifierSettings
from headrace.features.encoders.image_rows import dimensions_of, pixels_of
from headrace.models.engine.requests import EncodeRow
from headrace.models.fakes.fake_encoder import FakeEncoder, fake_vector


class FakeEmbedder(FakeEncoder):
    """Embeds texts and images."""

    scale = 10.0
    """Multiplies the cosine of an image and a text."""

    def answer(self, row: EncodeRow) -> bytes:
        """Return the vector of a row."""
        return fake_vector(_numbers(row), dimensions_of(row))


class FakeClassifier(FakeEncoder):
    """Has a classification head. Scores are between 0 and 1."""

    def __init__(self, settings: ClassifierSettings, *, step_s: float = 0.0) -> None:
        super().__init__(step_s=step_s)
        self.context_window = settings.context_window
        self._num_labels = len(settings.labels)
        self._is_per_token = settings.head is Head.TOKENS

    def answer(self, row: EncodeRow) -> bytes:
        """Return the scores of a row."""
        if self._is_per_token:
            return b"".join(fake_scores([token], self._num_labels) for token in row.tokens)
        return fake_scores(row.tokens, self._num_labels)


class FakeImageClassifier(FakeEncoder):
    """Classifies images."""

    def __init__(self, settings: ImageClassifierSettings, *, step_s: float = 0.0) -> None:
        super().__init__(step_s=step_s)
        self.context_window = settings.num_tokens
        self._num_labels = len(settings.labels)

    def answer(self, row: EncodeRow) -> bytes:
        """Return the scores of an image."""
        return fake_scores(_numbers(row), self._num_labels)


def fake_pixels(picture: Any) -> tuple[int, ...]:
    """Return a picture as the models without weights take it: the digest of its pixels."""
    return tuple(blake2b(picture.tobytes(), digest_size=16).digest())


def _numbers(row: EncodeRow) -> Sequence[int]:
    """Return what a vector or score is made of: the pixels of an image, else the tokens."""
    pixels = pixels_of(row)
    return row.tokens if pixels is None else pixels


def fake_scores(tokens: Sequence[int], num_labels: int) -> bytes:
    """Return the scores of an input as little-endian float32; those of several labels have the sum 1."""
    numbers = blake2b(array("q", tokens).tobytes(), digest_size=2 * num_labels).digest()
    weights = [int.from_bytes(numbers[at : at + 2], "little") for at in range(0, len(numbers), 2)]
    total = 65_536 if num_labels == 1 else sum(weights) or 1
    return struct.pack(f"<{num_labels}f", *(weight / total for weight in weights))

"""Encoders without weights: a vector or a score is a hash of the input tokens, so equal inputs have equal ones.

They ship with the product, as ``models.fakes.fake``, for demonstrations and tests without torch.
"""

import struct
import time
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import sqrt
from typing import Any

from headrace.models.engine.requests import EncodeRow
from headrace.models.runners.image_rows import dimensions_of, pixels_of
from headrace.prompts.encoders.classifier_folder import ClassifierSettings, Head
from headrace.prompts.tasks.embed import FAKE
from headrace.prompts.vision.image_folder import ImageClassifierSettings


class FakeEncoder:
    """An ``Encoder`` over bytes. A pass takes ``step_s``. ``fault`` gets its rows and may raise a device error."""

    context_window = FAKE.context_window
    scale = 10.0
    """Multiplies the cosine of an image and a text."""

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        sleep: Callable[[float], object] = time.sleep,
        fault: Callable[[Sequence[EncodeRow]], None] | None = None,
    ) -> None:
        self.step_s = step_s
        self.sleep = sleep
        self.fault = fault

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return the embedding of each row."""
        if self.fault is not None:
            self.fault(rows)
        if self.step_s:
            self.sleep(self.step_s)
        return [fake_vector(_numbers(row), dimensions_of(row)) for row in rows]


def fake_vector(tokens: Sequence[int], dimensions: int | None = None) -> bytes:
    """Return the embedding of an input: unit length, little-endian float32."""
    digest = blake2b(array("q", tokens).tobytes(), digest_size=FAKE.width).digest()
    numbers = [byte - 127.5 for byte in digest][:dimensions]
    norm = sqrt(sum(number * number for number in numbers))
    return struct.pack(f"<{len(numbers)}f", *(number / norm for number in numbers))


class FakeClassifier:
    """An ``Encoder`` with a classification head over bytes. Scores are between 0 and 1. A pass takes ``step_s``."""

    def __init__(
        self, settings: ClassifierSettings, *, step_s: float = 0.0, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.context_window = settings.context_window
        self._num_labels = len(settings.labels)
        self._is_per_token = settings.head is Head.TOKENS
        self.step_s = step_s
        self.sleep = sleep

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return each row's scores."""
        if self.step_s:
            self.sleep(self.step_s)
        if self._is_per_token:
            return [b"".join(fake_scores([token], self._num_labels) for token in row.tokens) for row in rows]
        return [fake_scores(row.tokens, self._num_labels) for row in rows]


class FakeImageClassifier:
    """An ``Encoder`` of images, as ``models.runners.images``. A pass takes ``step_s``."""

    def __init__(
        self, settings: ImageClassifierSettings, *, step_s: float = 0.0, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.context_window = settings.num_tokens
        self._num_labels = len(settings.labels)
        self.step_s = step_s
        self.sleep = sleep

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return each image's scores."""
        if self.step_s:
            self.sleep(self.step_s)
        return [fake_scores(_numbers(row), self._num_labels) for row in rows]


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

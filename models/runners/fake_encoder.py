"""Encoders without weights: an embedding or a score is a hash of the input tokens, so equal inputs have equal ones.

They ship with the product, as ``models.runners.fake``, for demonstrations and tests without torch.
"""

import struct
import time
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import sqrt

from models.engine.requests import EncodeRow
from prompts.tasks.embed import FAKE
from prompts.tasks.rerank import FAKE_WINDOW


class FakeEncoder:
    """An ``Encoder`` over bytes. A pass takes ``step_s``. ``fault`` gets its rows and may raise a device error."""

    context_window = FAKE.context_window

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        sleep: Callable[[float], object] = time.sleep,
        fault: Callable[[Sequence[EncodeRow]], None] | None = None,
    ) -> None:
        self._step_s = step_s
        self._sleep = sleep
        self._fault = fault

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return the embedding of each row."""
        if self._fault is not None:
            self._fault(rows)
        if self._step_s:
            self._sleep(self._step_s)
        return [fake_vector(row.tokens, row.options) for row in rows]


def fake_vector(tokens: Sequence[int], dimensions: int | None = None) -> bytes:
    """Return the embedding of an input: unit length, little-endian float32."""
    digest = blake2b(array("q", tokens).tobytes(), digest_size=FAKE.width).digest()
    numbers = [byte - 127.5 for byte in digest][:dimensions]
    norm = sqrt(sum(number * number for number in numbers))
    return struct.pack(f"<{len(numbers)}f", *(number / norm for number in numbers))


class FakeCrossEncoder:
    """An ``Encoder`` of pairs over bytes. A score is between 0 and 1. A pass takes ``step_s``."""

    context_window = FAKE_WINDOW

    def __init__(self, *, step_s: float = 0.0, sleep: Callable[[float], object] = time.sleep) -> None:
        self._step_s = step_s
        self._sleep = sleep

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return each row's score."""
        if self._step_s:
            self._sleep(self._step_s)
        return [fake_score(row.tokens) for row in rows]


def fake_score(tokens: Sequence[int]) -> bytes:
    """Return the score of a pair as little-endian float32."""
    digest = blake2b(array("q", tokens).tobytes(), digest_size=2).digest()
    return struct.pack("<f", int.from_bytes(digest, "little") / 65_536)

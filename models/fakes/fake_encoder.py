"""The Encoder without weights: a vector is a hash of the input tokens, so equal inputs have equal ones.

It ships with the product, as ``models.fakes.fake``, for demonstrations and tests without torch.
"""

import struct
import time
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import sqrt

from headrace.models.engine.requests import EncodeRow

FAKE_WINDOW = 8192
FAKE_WIDTH = 8
"""The numbers of a vector."""


class FakeEncoder:
    """An ``Encoder`` over bytes. A pass takes ``step_s``. ``fault`` gets its rows and may raise a device error."""

    context_window = FAKE_WINDOW

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
        """Return the answer of each row."""
        if self.fault is not None:
            self.fault(rows)
        if self.step_s:
            self.sleep(self.step_s)
        return [self.answer(row) for row in rows]

    def answer(self, row: EncodeRow) -> bytes:
        """Return the vector of a row, of so many numbers as its options say."""
        return fake_vector(row.tokens, row.options)


def fake_vector(tokens: Sequence[int], dimensions: int | None = None) -> bytes:
    """Return the embedding of an input: unit length, little-endian float32."""
    digest = blake2b(array("q", tokens).tobytes(), digest_size=FAKE_WIDTH).digest()
    numbers = [byte - 127.5 for byte in digest][:dimensions]
    norm = sqrt(sum(number * number for number in numbers))
    return struct.pack(f"<{len(numbers)}f", *(number / norm for number in numbers))

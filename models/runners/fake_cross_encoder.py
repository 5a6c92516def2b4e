"""A cross-encoder without weights: a score is a function of the pair's tokens alone, between 0 and 1."""

import struct
import time
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b

from models.engine.requests import EncodeRow
from prompts.tasks.rerank import FAKE_WINDOW


class FakeCrossEncoder:
    """An ``Encoder`` over bytes. A pass takes ``step_s``."""

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

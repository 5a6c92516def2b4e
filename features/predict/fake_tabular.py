"""The tabular model without weights: the score of a row is a hash of its numbers, between 0 and 1.

With ``explain`` the first feature has all of what the score differs from 0.5.
"""

import struct
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b

from headrace.features.predict.inputs import FAKE
from headrace.features.predict.task import MAX_ROWS
from headrace.models.engine.requests import EncodeRow

_BASELINE = 0.5


class FakeTabular:
    """An ``Encoder`` of rows, as ``features.predict.torch_tabular``. A pass takes ``step_s``."""

    context_window = MAX_ROWS

    def __init__(self, *, step_s: float = 0.0, sleep: Callable[[float], object] = time.sleep) -> None:
        self.step_s = step_s
        self.sleep = sleep

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return the vector of each row."""
        if self.step_s:
            self.sleep(self.step_s)
        return [_vector(row) for row in rows]


def _vector(row: EncodeRow) -> bytes:
    encoded = repr((row.options.numbers[row.index], row.options.categories[row.index]))
    score = int.from_bytes(blake2b(encoded.encode(), digest_size=2).digest()) / 65_536
    if not row.options.explain:
        return struct.pack("<f", score)
    others = [0.0] * (len(FAKE.features) - 1)
    return struct.pack(f"<{len(FAKE.features) + 3}f", score, score - _BASELINE, *others, _BASELINE, 0.0)

"""Jobs of text encoders, and the numbers of their vectors."""

import struct
from collections.abc import Callable, Sequence
from typing import Any

from headrace.features.encoders.fitted_inputs import FittedInput
from headrace.workers.tasks.encoding import EncodeJob

FLOAT_BYTES = 4


def job_of(inputs: Sequence[FittedInput], output: Callable[[Sequence[bytes]], dict[str, Any]]) -> EncodeJob:
    """Return the job for a model with a classification head: its options are the token type ids of each input."""
    types = tuple(one.encoded.type_ids for one in inputs)
    return EncodeJob(tuple(one.encoded.ids for one in inputs), types, output)


def numbers_of(vector: bytes) -> tuple[float, ...]:
    """Return the numbers of a vector."""
    return struct.unpack(f"<{len(vector) // FLOAT_BYTES}f", vector)

"""Arrays of numbers that tests of runners compare."""

import struct
from typing import Any

import torch

from headrace.models.engine.requests import EncodeRow

CPU = torch.device("cpu")


def floats(packed: bytes | None) -> list[float]:
    assert packed is not None
    return [round(number, 5) for number in struct.unpack(f"<{len(packed) // 4}f", packed)]


def rows(*inputs: tuple[int, ...], options: Any = None) -> list[EncodeRow]:
    return [EncodeRow("r", one, options, index) for index, one in enumerate(inputs)]

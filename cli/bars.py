"""Bars of block characters."""

from collections.abc import Sequence

BLOCKS = " ▁▂▃▄▅▆▇█"


def level(share: float) -> str:
    """Return the block that is filled to this share, from 0 to 1."""
    return BLOCKS[round(min(max(share, 0.0), 1.0) * (len(BLOCKS) - 1))]


def sparkline(values: Sequence[float | None], width: int, top: float) -> str:
    """Return the values as a row of at most ``width`` blocks, each the largest of its part. None is a gap.

    ``top`` is the value of a full block.
    """
    width = min(width, len(values))
    parts = [values[len(values) * i // width : max(1, len(values) * (i + 1) // width)] for i in range(width)]
    return "".join(level(max([value or 0.0 for value in part]) / max(top, 1e-9)) for part in parts)

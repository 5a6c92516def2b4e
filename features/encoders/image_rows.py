"""Images of a job as an encoder takes them: the options of its request, with the prepared pixels of the images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from headrace.models.engine.requests import EncodeRow

PrepareImage: TypeAlias = Callable[[Any], Any]
"""Returns a decoded picture (``prompts.vision.pictures``) as the model takes it. Called from many threads at once."""


@dataclass(frozen=True, slots=True)
class ImageRows:
    """``pixels`` are the first inputs of the request, those after them are texts. ``dimensions`` are of each vector."""

    pixels: tuple[Any, ...]
    dimensions: int | None = None


def pixels_of(row: EncodeRow) -> Any:
    """Return the prepared pixels of a row, None for a text."""
    options = row.options
    is_image = isinstance(options, ImageRows) and row.index < len(options.pixels)
    return options.pixels[row.index] if is_image else None


def dimensions_of(row: EncodeRow) -> int | None:
    """Return how many numbers the vector of a row shall have; None: all."""
    options: ImageRows | int | None = row.options
    return options.dimensions if isinstance(options, ImageRows) else options


def by_shape(rows: Sequence[EncodeRow]) -> list[list[int]]:
    """Return the places of the images, those of one shape together: each group is one forward pass."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if (pixels := pixels_of(row)) is not None:
            groups.setdefault(tuple(pixels.shape), []).append(place)
    return list(groups.values())

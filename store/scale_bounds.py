"""The setting HEADRACE_AUTOSCALE: between which numbers the workers of a model are. ``NAME=0..4,NAME@2=1..2``."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_BOUNDS = re.compile(r"(\d{1,4})\.\.(\d{1,4})")
_MOST = 1_000


@dataclass(frozen=True, slots=True)
class ScaleBounds:
    """The least and the most workers of ``model``: a name, NAME@VERSION or NAME@ALIAS, as a worker takes it."""

    model: str
    least: int
    most: int


def parse_range(given: str) -> tuple[int, int]:
    """Return the numbers of ``0..4``. Raises ValueError with a sentence."""
    found = _BOUNDS.fullmatch(given.strip())
    if found is None:
        raise ValueError(f"{given!r}: write the least and the most workers, such as 0..4")
    least, most = int(found[1]), int(found[2])
    if not least <= most <= _MOST or most == 0:
        raise ValueError(f"{given!r}: the first number is at most the second one, which is 1 to {_MOST:,}")
    return least, most


def parse_bounds(entries: Iterable[str]) -> tuple[ScaleBounds, ...]:
    """Return the bounds of each model. Raises ValueError with a sentence."""
    found: dict[str, ScaleBounds] = {}
    for entry in entries:
        model, is_given, numbers = (part.strip() for part in entry.partition("="))
        if not model or not is_given:
            raise ValueError(f"{entry!r}: write NAME=0..4, or NAME@2=0..4 for one version")
        if model in found:
            raise ValueError(f"{model!r} is given twice")
        found[model] = ScaleBounds(model, *parse_range(numbers))
    return tuple(found.values())

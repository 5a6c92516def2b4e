"""Stand-ins of the objects that a function reads a few fields of."""

from types import SimpleNamespace
from typing import Any


def stand_in(**fields: Any) -> Any:
    """Return an object with these fields alone: a function that reads another one raises an AttributeError."""
    return SimpleNamespace(**fields)

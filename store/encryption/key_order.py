"""Schemas of functions in a JSON value that is stored as ``jsonb``, which sorts the keys of objects.

A model reads a schema as text, so the order of its keys is a part of the prompt. A schema in another order than that of
``jsonb`` is stored as its text, ``{"as_sent": "…"}``, wherever a field ``parameters`` has it.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

SCHEMA: Final = "parameters"
AS_SENT: Final = "as_sent"


def restored(value: Any) -> Any:
    """Return a stored value with its schemas as they were sent."""
    if isinstance(value, list):
        return [restored(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {name: _schema(item) if name == SCHEMA else restored(item) for name, item in value.items()}


def _schema(stored: Any) -> Any:
    text = stored.get(AS_SENT) if isinstance(stored, Mapping) and len(stored) == 1 else None
    try:
        return orjson.loads(text) if isinstance(text, str) else restored(stored)
    except ValueError:
        return stored

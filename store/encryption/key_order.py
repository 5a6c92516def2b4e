"""Schemas of functions in a JSON value that is stored as ``jsonb``, which sorts the keys of objects.

A model reads a schema as text, so the order of its keys is a part of the prompt. A schema in another order than that of
``jsonb`` is stored as its text, ``{"as_sent": "…"}``, wherever a field ``parameters`` has it.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

SCHEMA: Final = "parameters"
AS_SENT: Final = "as_sent"


def kept(value: Any) -> Any:
    """Return a value to be stored, with schemas as texts where ``jsonb`` would sort their keys otherwise."""
    if isinstance(value, list | tuple):
        return [kept(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        name: {AS_SENT: orjson.dumps(item).decode()} if name == SCHEMA and not _is_sorted(item) else kept(item)
        for name, item in value.items()
    }


def restored(value: Any) -> Any:
    """Return a stored value with its schemas as they were sent."""
    if isinstance(value, list):
        return [restored(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {name: _schema(item) if name == SCHEMA else restored(item) for name, item in value.items()}


def _is_sorted(value: Any) -> bool:
    """True if all objects have their keys as ``jsonb`` sorts them: shorter ones first, then by their bytes."""
    if isinstance(value, list | tuple):
        return all(map(_is_sorted, value))
    if not isinstance(value, Mapping):
        return True
    keys = [name.encode() for name in value]
    return keys == sorted(keys, key=lambda key: (len(key), key)) and all(map(_is_sorted, value.values()))


def _schema(stored: Any) -> Any:
    text = stored.get(AS_SENT) if isinstance(stored, Mapping) and len(stored) == 1 else None
    try:
        return orjson.loads(text) if isinstance(text, str) else restored(stored)
    except ValueError:
        return stored

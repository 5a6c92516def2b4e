"""Objects of callers in a JSON value that is stored as ``jsonb``, which sorts their keys.

A model may read such an object as text, so the order of its keys is a part of the prompt: the schema of a function, a
variable of a chat template, an object in the input of an own task. One in another order than that of ``jsonb`` is
stored as its text, ``{"as_sent": "…"}``, in a field ``parameters`` and in the fields of an ``input``. Objects with
fields of ours need no order: their model has it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

SCHEMA: Final = "parameters"
INPUT: Final = "input"
AS_SENT: Final = "as_sent"

# Fields of an input that have fields of ours: only the schemas in them are the caller's.
_OURS: Final = frozenset({"messages", "tools"})


def kept(value: Any) -> Any:
    """Return a value to be stored, with objects as texts where ``jsonb`` would sort their keys otherwise."""
    return _changed(value, _kept)


def restored(value: Any) -> Any:
    """Return a stored value with its objects as they were sent."""
    return _changed(value, _restored)


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return the value with the caller's part in it changed."""
    if isinstance(value, list | tuple):
        return [_changed(item, change) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {name: _changed_field(name, item, change) for name, item in value.items()}


def _changed_field(name: str, item: Any, change: Callable[[Any], Any]) -> Any:
    if name == SCHEMA:
        return change(item)
    if name == INPUT and isinstance(item, Mapping):
        return {field: _changed(part, change) if field in _OURS else change(part) for field, part in item.items()}
    return _changed(item, change)


def _kept(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_kept(item) for item in value]
    if not isinstance(value, Mapping) or _is_as_read(value):
        return value
    return {AS_SENT: orjson.dumps(value).decode()}


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if not isinstance(value, Mapping) or len(value) != 1 or not isinstance(text := value.get(AS_SENT), str):
        return value
    try:
        return orjson.loads(text)
    except ValueError:
        return value


def _is_as_read(value: Any) -> bool:
    """True if all objects have their keys as ``jsonb`` sorts them, shorter ones first, and none looks like a text."""
    if isinstance(value, list | tuple):
        return all(map(_is_as_read, value))
    if not isinstance(value, Mapping):
        return True
    keys = [name.encode() for name in value]
    is_sorted = keys == sorted(keys, key=lambda key: (len(key), key))
    return is_sorted and AS_SENT not in value and all(map(_is_as_read, value.values()))

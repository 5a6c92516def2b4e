"""The small files of a model folder as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from headrace.store.errors import ModelLoadError


def whole_number(config: Mapping[str, Any], *names: str) -> int:
    """Return the value of the first field that the configuration has. Raises ModelLoadError."""
    value = next((config[name] for name in names if name in config), None)
    if not isinstance(value, int) or value < 1:
        raise ModelLoadError(f"config.json: {names[0]} must be a positive whole number, not {value!r}")
    return value


def json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Return a file's JSON object, an empty one if the file is not there. Raises ModelLoadError."""
    return dict(_json(files, name, dict))


def json_array(files: Mapping[str, bytes], name: str) -> list[Any]:
    """Return a file's JSON array, an empty one if the file is not there. Raises ModelLoadError."""
    return list(_json(files, name, list))


def _json(files: Mapping[str, bytes], name: str, kind: type) -> Any:
    if name not in files:
        return kind()
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise ModelLoadError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise ModelLoadError(f"{name} is not a JSON {'object' if kind is dict else 'array'}")
    return value

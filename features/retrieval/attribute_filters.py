"""Filters on the attributes of files, in OpenAI's form, as an SQL condition with bound parameters.

{"type": "eq", "key": "year", "value": 2026}        eq, ne, gt, gte, lt, lte, in, nin
{"type": "and", "filters": [...]}                   and, or
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.store.errors import InvalidRequest
from headrace.store.json_text import dump_json

MOST_CONDITIONS = 64
MOST_LEVELS = 8

_ORDERED = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_EQUAL = {"eq": "IS NOT DISTINCT FROM", "ne": "IS DISTINCT FROM"}
_LISTS = {"in": "COALESCE({value} = ANY({given}), false)", "nin": "COALESCE({value} <> ALL({given}), true)"}
TYPES = (*_EQUAL, *_ORDERED, *_LISTS, "and", "or")


@dataclass(slots=True)
class AttributeFilter:
    """A condition on a column ``attributes``, and its parameters."""

    sql: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    _num: int = 0

    def add(self, value: object) -> str:
        """Return the name of a new parameter."""
        name = f"filter_{len(self.values)}"
        self.values[name] = value
        return f":{name}"

    def count(self, param: str) -> None:
        """Count one condition more. Raises InvalidRequest if there are too many."""
        self._num += 1
        if self._num > MOST_CONDITIONS:
            raise InvalidRequest(f"`{param}` has more than {MOST_CONDITIONS} conditions", param=param)


def read_filter(given: Mapping[str, Any] | None, param: str = "filters") -> AttributeFilter | None:
    """Return the condition of a filter; None without one. Raises InvalidRequest that names the wrong part."""
    if given is None:
        return None
    found = AttributeFilter()
    found.sql = _condition(given, param, found, 1)
    return found


def _condition(given: object, param: str, found: AttributeFilter, level: int) -> str:
    if level > MOST_LEVELS:
        raise InvalidRequest(f"`{param}` is more than {MOST_LEVELS} levels deep", param=param)
    if not isinstance(given, Mapping) or given.get("type") not in TYPES:
        raise InvalidRequest(f"`{param}.type` must be one of {', '.join(TYPES)}", param=f"{param}.type")
    found.count(param)
    if given["type"] in ("and", "or"):
        parts = given.get("filters")
        _check_fields(given, {"type", "filters"}, param)
        if not isinstance(parts, list) or not parts:
            raise InvalidRequest(f"`{param}.filters` must be a list of filters", param=f"{param}.filters")
        conditions = [_condition(one, f"{param}.filters[{at}]", found, level + 1) for at, one in enumerate(parts)]
        joined = f" {given['type'].upper()} ".join(conditions)
        return f"({joined})"
    return _comparison(given, param, found)


def _comparison(given: Mapping[str, Any], param: str, found: AttributeFilter) -> str:
    _check_fields(given, {"type", "key", "value"}, param)
    kind, key, value = given["type"], given.get("key"), given.get("value")
    if not isinstance(key, str) or not 1 <= len(key) <= 64:
        raise InvalidRequest(f"`{param}.key` must be the name of an attribute", param=f"{param}.key")
    column = f"(attributes -> CAST({found.add(key)} AS text))"
    if kind in _LISTS:
        if not isinstance(value, list) or not value or not all(map(_is_scalar, value)):
            message = f"`{param}.value` must be a list of texts, numbers or booleans"
            raise InvalidRequest(message, param=f"{param}.value")
        listed = found.add([dump_json(one) for one in value])
        return _LISTS[kind].format(value=column, given=f"CAST({listed} AS jsonb[])")
    if not _is_scalar(value):
        raise InvalidRequest(f"`{param}.value` must be a text, a number or a boolean", param=f"{param}.value")
    name = f"CAST({found.add(dump_json(value))} AS jsonb)"
    if kind in _EQUAL:
        return f"({column} {_EQUAL[kind]} {name})"
    # Without the comparison of types, every text would be less than every number.
    return f"COALESCE(jsonb_typeof({column}) = jsonb_typeof({name}) AND {column} {_ORDERED[kind]} {name}, false)"


def _check_fields(given: Mapping[str, Any], known: set[str], param: str) -> None:
    if unknown := sorted(set(given) - known):
        name = f"{param}.{unknown[0][:64]}"
        raise InvalidRequest(f"`{name}` is no field of a filter: {', '.join(sorted(known))} are", param=name)


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float | bool)

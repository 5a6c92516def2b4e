"""JSON schemas of tenants: checked when a policy, a prompt template or a pipeline is stored.

They are followed without network access, and in bounded time and memory: the library holds the GIL meanwhile, and keeps
a copy of a value for each error. A schema counts with what its references name in their places, and its size times that
of a value has a bound.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

MAX_SCHEMA_CHARS = 65_536

MAX_PARTS = 20_000
"""Of a schema, with what its references name in their places."""

MAX_STEPS = 3_000_000
"""Of checking a value: parts of the schema times those of the value, of which 64 characters are one: 0.15 s, 100 MB."""

_TOO_LARGE = "it is too large to be checked against this schema"
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_COUNT = re.compile(r"(\)?)\{(\d{1,9})(?:,(\d{0,9}))?\}")


@dataclass(frozen=True, slots=True)
class Validator:
    """A schema that can be followed. ``parts``: how many, and how many of them are references to itself."""

    compiled: Any  # the library's classes differ by draft
    parts: tuple[int, int]

    def can_check(self, value: Any, text: str) -> bool:
        """Return True if the value, of which ``text`` is the JSON, is within ``MAX_STEPS``."""
        num_parts, num_again = self.parts
        size = 1 + text.count(",") + text.count(":") + text.count("[") + len(text) // 64
        # A reference to itself is followed once in each level of the value.
        num_times = 1 + sum(num_again**level for level in range(1, _depth(value))) if num_again else 1
        return num_parts * size * num_times <= MAX_STEPS


def check_schema(schema: dict[str, Any], name: str = "json_schema") -> Validator:
    """Return a validator for the schema; ``name``: of its field. Raises ValueError for one that is not valid here."""
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARS:
        raise ValueError(f"`{name}` is longer than {MAX_SCHEMA_CHARS} characters")
    try:
        compiled = jsonschema_rs.validator_for(
            schema, offline=True, pattern_options=jsonschema_rs.RegexOptions(), mask="the value"
        )
        parts = _parts(schema)
    except (ValueError, RecursionError, jsonschema_rs.ReferencingError) as error:
        raise ValueError(f"`{name}` is no schema that can be followed: {str(error).splitlines()[0]}") from None
    if parts[0] > MAX_PARTS:
        raise ValueError(
            f"`{name}` has over {MAX_PARTS} parts, with what its references name in their places and what its patterns"
            " repeat: use fewer references and smaller counts"
        )
    return Validator(compiled, parts)


def _parts(root: dict[str, Any]) -> tuple[int, int]:
    """Return how many parts a schema has, and how many references to it are in a part that a reference names.

    Raises ValueError for a reference that cannot be followed here.
    """
    found: dict[str, tuple[int, int]] = {}
    id_names = ("$id", "id") if "draft-04" in str(root.get("$schema")) else ("$id",)

    def named(reference: str) -> tuple[int, int]:
        if reference not in found:
            found[reference] = 1, 1  # inside of itself
            found[reference] = parts(_at(root, reference))
        return found[reference]

    def parts(node: Any) -> tuple[int, int]:
        if isinstance(node, str):
            return _repeats(node), 0
        if not isinstance(node, dict | list):
            return 0, 0
        each = [parts(one) for one in ([*node, *node.values()] if isinstance(node, dict) else node)]
        if isinstance(node, dict):
            if node is not root and any(isinstance(node.get(name), str) for name in id_names):
                raise ValueError("a schema inside of it has an id: leave it out")
            each += [named(node[name]) for name in _REFERENCES if isinstance(node.get(name), str)]
            if any(name.startswith("unevaluated") for name in node):
                each *= 2  # the library looks through what it evaluated once more
        return 1 + len(node) // 8 + sum(num for num, _ in each), sum(again for _, again in each)

    num_parts, _ = parts(root)
    return num_parts, max((again for _, again in found.values()), default=0)


def _at(root: Any, reference: str) -> Any:
    if reference != "#" and not reference.startswith("#/"):
        raise ValueError(f"a reference is `#` or begins with `#/`, not {reference[:64]}")
    node = root
    try:
        for step in unquote(reference[2:]).split("/") if reference != "#" else ():
            node = node[int(step)] if isinstance(node, list) else node[step.replace("~1", "/").replace("~0", "~")]
    except (LookupError, TypeError):
        raise ValueError(f"nothing is at {reference[:64]}") from None
    return node


def _repeats(pattern: str) -> int:
    """Return how many states its counts ``{n}`` add to a pattern, at most: those of groups multiply."""
    found = [(group, int(most or least)) for group, least, most in _COUNT.findall(pattern)]
    return sum(num for _, num in found) * math.prod(max(1, num) for group, num in found if group)


def _depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inside), default=0)


def first_problem(validator: Validator, value: Any) -> tuple[str, str] | None:
    """Return the place of the first thing that the schema does not allow, and why, without the value; None if none."""
    try:
        if not validator.can_check(value, json.dumps(value)):
            return "", _TOO_LARGE
        validator.compiled.validate(value)
    except RecursionError:
        return "", "it is nested too deeply"
    except jsonschema_rs.ValidationError as error:
        return ".".join(map(str, error.instance_path)), error.message
    return None


def is_valid(validator: Validator, text: str) -> bool:
    """Return True if a text is JSON that the schema allows, and not too large to be checked."""
    try:
        value = json.loads(text)
        return validator.can_check(value, text) and bool(validator.compiled.is_valid(value))
    except (ValueError, RecursionError):
        return False


def is_json(text: str) -> bool:
    """Return True if a text is JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True

"""Random JSON schemas with all common keywords of drafts 7 to 2020-12.

Some have unsupported keywords or cannot be satisfied: these must be refused. A seed gives the same schemas everywhere.
"""

import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]

WORDS = ("name", "id", "größe", "a b", 'quo"te', "back\\slash", "emoji 🦆", "$ref", "type", "x")
PATTERNS = (
    "^[a-c]{1,3}(-[0-9]+)?$",
    "^(yes|no)$",
    r"^\d{4}-\d{2}$",
    "^[A-Z][a-z]{0,8}$",
    r"^\w{1,5}$",
    "b",
    "^x",
    r"^[^\"\\]{2,4}$",
)
FORMATS = ("date", "date-time", "time", "email", "uuid", "ipv4", "ipv6", "hostname", "uri", "duration", "color")


def a_double(digits: str) -> float:
    """Read a number; one with an exponent that no double holds is one all the same."""
    return max(-sys.float_info.max, min(float(digits), sys.float_info.max))


def random_schemas(seed: int, count: int) -> Iterator[Schema]:
    """Yield ``count`` schemas."""
    draw = random.Random(seed)
    for _ in range(count):
        yield _Maker(draw).root()


class _Maker:
    """Makes one schema, with definitions that any part of it may refer to."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._definitions: dict[str, Schema] = {}

    def root(self) -> Schema:
        schema = self._any(depth=3)
        if self._definitions:
            schema = {**schema, "$defs": self._definitions}
        if self._maybe(0.3):
            schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Answer", **schema}
        return schema

    def _maybe(self, probability: float) -> bool:
        return self._draw.random() < probability

    def _any(self, depth: int) -> Schema:
        simple: list[Callable[[], Schema]] = [self._string, self._number, self._choice, self._plain]
        deep: list[Callable[[int], Schema]] = [
            self._object,
            self._object,
            self._object,
            self._array,
            self._array,
            self._tuple,
            self._union,
            self._all,
            self._reference,
            self._map,
            self._rare,
        ]
        if depth == 0 or self._maybe(0.25):
            return self._draw.choice(simple)()
        return self._draw.choice(deep)(depth - 1)

    def _string(self) -> Schema:
        schema: Schema = {"type": "string"}
        low = self._draw.randrange(4)
        kind = self._draw.randrange(4)
        if kind == 0:
            schema["pattern"] = self._draw.choice(PATTERNS)
        elif kind == 1:
            schema["format"] = self._draw.choice(FORMATS)
        if kind != 1 and self._maybe(0.8):
            schema["maxLength"] = low + self._draw.randrange(12)
        if kind > 1 and self._maybe(0.4):
            schema["minLength"] = low
        return schema

    def _number(self) -> Schema:
        schema: Schema = {"type": self._draw.choice(["integer", "integer", "number"])}
        low = self._draw.choice([-1000, -1.5, 0, 0.25, 7, 10**9])
        if self._maybe(0.7):
            schema[self._draw.choice(["minimum", "exclusiveMinimum"])] = low
            schema[self._draw.choice(["maximum", "exclusiveMaximum"])] = low + self._draw.choice([0, 1, 10.5, 10**6])
        elif self._maybe(0.3):
            schema["multipleOf"] = self._draw.choice([2, 5, 0.5, 0.01])
        return schema

    def _choice(self) -> Schema:
        values = [None, True, 0, -1.5, 1e20, "red", 'b"l\\ue', "vert 🦆", "", [1, "a"], {"k": [None]}]
        if self._maybe(0.3):
            return {"const": self._draw.choice(values)}
        return {"enum": self._draw.sample(values, self._draw.randrange(1, 5))}

    def _plain(self) -> Schema:
        kinds = [{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"], "maxLength": 5}]
        return dict(self._draw.choice([*kinds, {"type": ["integer", "boolean", "null"]}]))

    def _object(self, depth: int) -> Schema:
        names = self._draw.sample(WORDS, self._draw.randrange(1, 5))
        schema: Schema = {"type": "object", "properties": {name: self._any(depth) for name in names}}
        if self._maybe(0.8):
            schema["required"] = [name for name in names if self._maybe(0.7)]
        extra = self._draw.randrange(4)
        if extra < 2:
            schema["additionalProperties"] = False
        elif extra == 2:
            schema["additionalProperties"] = self._any(0)
        return schema

    def _array(self, depth: int) -> Schema:
        schema: Schema = {"type": "array", "items": self._any(depth)}
        low = self._draw.randrange(3)
        if self._maybe(0.8):
            schema["maxItems"] = low + self._draw.randrange(3)
        if self._maybe(0.5):
            schema["minItems"] = low
        return schema

    def _tuple(self, depth: int) -> Schema:
        parts = [self._any(depth) for _ in range(self._draw.randrange(1, 4))]
        items = self._draw.choice([False, self._any(0)])
        return {"type": "array", "prefixItems": parts, "items": items, "minItems": len(parts), "maxItems": 5}

    def _union(self, depth: int) -> Schema:
        parts = [self._any(depth) for _ in range(self._draw.randrange(1, 4))]
        return {self._draw.choice(["anyOf", "anyOf", "oneOf"]): parts}

    def _all(self, depth: int) -> Schema:
        return {"allOf": [self._object(depth), self._object(depth)]}

    def _reference(self, depth: int) -> Schema:
        name = f"part{len(self._definitions)}"
        self._definitions[name] = {}
        part = self._object(depth)
        if self._maybe(0.4):
            part["properties"]["next"] = {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}
        self._definitions[name] = part
        return {"$ref": f"#/$defs/{name}"}

    def _map(self, depth: int) -> Schema:
        schema: Schema = {"type": "object", "additionalProperties": self._any(depth)}
        if self._maybe(0.5):
            schema["maxProperties"] = self._draw.randrange(1, 3)
        if self._maybe(0.3):
            schema["minProperties"] = 1
        if self._maybe(0.3):
            schema["patternProperties"] = {"^x-": self._any(0)}
        return schema

    def _rare(self, depth: int) -> Schema:
        """Rarely used and rarely supported keywords."""
        part = self._object(depth)
        more: list[Schema] = [
            {"not": {"required": ["never"]}},
            {"if": {"required": ["id"]}, "then": {"required": ["name"]}},
            {"dependentRequired": {"id": ["name"]}},
            {"propertyNames": {"maxLength": 4}},
            {"unevaluatedProperties": False},
            {"description": "an example", "examples": [{}], "default": {}, "deprecated": True},
        ]
        if self._maybe(0.2):
            return {"type": "array", "items": self._any(0), "uniqueItems": True, "maxItems": 3}
        return {**part, **self._draw.choice(more)}

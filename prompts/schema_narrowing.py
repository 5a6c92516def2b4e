"""Narrows JSON schemas to what the grammar library can follow: each allowed answer still matches the given schema.

pydantic and zod write keywords, formats and look-aheads that llguidance refuses. Most of them have a form that it knows
and that allows the same answers, or fewer. What has none is left as it is, and is refused when it is compiled.

Where llguidance allows more than validators, the schema is narrowed too: it allows second 60 in every minute, and
validators only in the last minute of a day. A class with control characters, but without quotes and backslashes, would
also allow those in JSON escapes, so control characters are removed from negated classes.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

Schema = dict[str, Any]

_VALUES = frozenset({"enum", "const", "default", "examples"})
"""Keywords of a schema with plain values, not with schemas."""

_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions"})
"""Keywords with a schema for each name: a name there is no keyword."""

_COMBINING = frozenset({"allOf", "anyOf", "oneOf", "not", "if"})
"""Keywords with more conditions, which one pattern of names does not express. A look-ahead becomes one of them."""

_LISTING = frozenset({"enum", "const", "type", "title", "description", "default", "examples"})
"""Keywords of a schema that lists its values without a further condition on them."""

_KNOWN_FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"]
)

_ALIKE = {
    "idn-email": "email",
    "name-email": "email",
    "multi-host-uri": "uri",
    "url": "uri",
    "ipvanyaddress": "ipv4",
    **{f"ipv{version}{kind}": f"ipv{version}" for version in "46" for kind in ("network", "interface")},
    "ipvanynetwork": "ipv4",
    "ipvanyinterface": "ipv4",
}
"""Formats of pydantic for which each text of another format is valid."""

# The bits of the last letter that stand for nothing are 0, which strict decoders require.
_BASE64 = r"^(?:[0-9a-zA-Z+/]{4})*(?:[0-9a-zA-Z+/][AQgw]==|[0-9a-zA-Z+/]{2}[AEIMQUYcgkosw048]=)?$"
_BASE64URL = _BASE64.replace("+/", "_-")
_PATTERNS = {
    "base64": _BASE64,
    "byte": _BASE64,
    "base64url": _BASE64URL,
    **{
        f"uuid{version}": rf"^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"
        for version in range(1, 9)
    },
}
"""Formats that are more than annotations to pydantic and zod, as patterns."""

_NAMES = {
    "uuid": r"^[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
    "date": r"^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])$",
    **{name: pattern for name, pattern in _PATTERNS.items() if name.startswith("uuid")},
}
"""Formats of the keys of an object."""

_ZOD_DURATION = r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"

# Escaped characters outside of a class do not match, nor does a class that starts with its closing bracket.
_NEGATED_CLASS = re.compile(r"(\\.)|\[\^(?!\])", re.DOTALL)
_LOOK_AHEAD = re.compile(r"\^?\(\?([=!])")
_CLASS_ONLY = re.compile(r"\^?\[(?!\^)((?:[^\]\\]|\\.)+)\][*+]\$")
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_LARGEST = 10**18
_MOST_UNIQUE = 5
"""An array of distinct values is all their orders: 326 of five values."""


def narrow(schema: Any) -> Any:
    """Return a schema, or a part of one, narrowed. Raises RecursionError if it is nested too deeply."""
    tagged = _with_tags(schema)
    return _narrowed(tagged, tagged if isinstance(tagged, dict) else {})


def _narrowed(schema: Any, root: Schema) -> Any:
    if isinstance(schema, list):
        return [_narrowed(part, root) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: _part(name, value, root) for name, value in schema.items()}
    if parts == {"not": {}}:
        return False
    for rewrite in (_tagged, _by_key_names, _distinct, _of_bounds, _of_format, _of_pattern):
        parts = rewrite(parts, root)
    return parts


def _part(name: str, value: Any, root: Schema) -> Any:
    if name in _VALUES:
        return value
    if name in _BY_NAME and isinstance(value, dict):
        given = {key: _narrowed(part, root) for key, part in value.items()}
        return {_printable(key): part for key, part in given.items()} if name == "patternProperties" else given
    return _narrowed(value, root)


def _resolved(part: Any, root: Schema) -> Any:
    """Return what a reference to a definition of the schema means; anything else as it is."""
    for _ in range(8):
        reference = part.get("$ref") if isinstance(part, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        part = root
        for step in reference[2:].split("/"):
            part = part.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(part, dict) else None
    return part


def _with_tags(schema: Any) -> Any:
    """Require the tag in each definition that is a part of a tagged union, as pydantic does when it reads one.

    A tag with a default is not required in pydantic's schema, and then the parts may overlap.
    """
    definitions = schema.get("$defs") if isinstance(schema, dict) else None
    if not isinstance(definitions, dict):
        return schema
    required = {name: part.get("required", []) for name, part in definitions.items() if isinstance(part, dict)}
    for reference, tag in _tags(schema):
        names = required.get(reference.removeprefix("#/$defs/"))
        if isinstance(names, list) and tag not in names:
            required[reference.removeprefix("#/$defs/")] = [*names, tag]
    tagged = {name: definitions[name] | {"required": names} for name, names in required.items() if names}
    return schema | {"$defs": definitions | tagged}


def _tags(part: Any) -> Iterator[tuple[str, str]]:
    """Yield the reference to each part of a tagged union, and the name of its tag."""
    if isinstance(part, list):
        for one in part:
            yield from _tags(one)
    elif isinstance(part, dict):
        discriminator = part.get("discriminator")
        tag = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
        for one in part.get("oneOf") or () if isinstance(tag, str) else ():
            if isinstance(one, dict) and isinstance(one.get("$ref"), str):
                yield one["$ref"], str(tag)
        for name, one in part.items():
            if name not in _VALUES:
                yield from _tags(one)


def _tagged(schema: Schema, root: Schema) -> Schema:
    """Write a union whose parts have different required tags as ``anyOf``: the grammar library would compare them."""
    discriminator, parts = schema.get("discriminator"), schema.get("oneOf")
    if not isinstance(discriminator, dict) or not isinstance(parts, list) or "anyOf" in schema:
        return schema
    tag = discriminator.get("propertyName")
    values: list[str] = []
    for part in (_resolved(part, root) for part in parts):
        properties = part.get("properties") if isinstance(part, dict) else None
        own = _values(properties.get(tag)) if isinstance(properties, dict) else None
        if own is None or tag not in part.get("required", ()):
            return schema
        values += map(json.dumps, own)
    if len(set(values)) != len(values):
        return schema
    return {key: value for key, value in schema.items() if key not in ("oneOf", "discriminator")} | {"anyOf": parts}


def _by_key_names(schema: Schema, root: Schema) -> Schema:
    """Write ``propertyNames`` as properties or as a pattern of names."""
    names = _resolved(schema.get("propertyNames"), root)
    others = {key: value for key, value in schema.items() if key != "propertyNames"}
    if names is True or (isinstance(names, dict) and _is_any_text(names)):
        return others
    has_names = bool(schema.get("properties")) or "patternProperties" in schema
    if not isinstance(names, dict) or has_names:
        return schema
    value = schema.get("additionalProperties", True)
    if (allowed := _values(names)) is not None:
        if names.keys() - _LISTING:
            return schema
        named = {name: value for name in allowed if isinstance(name, str)}
        return others | {"properties": named, "additionalProperties": False}
    pattern = _name_pattern(names)
    if pattern is None:
        return schema
    return others | {"patternProperties": {_printable(pattern): value}, "additionalProperties": False}


def _is_any_text(names: Schema) -> bool:
    return not names.keys() - {"type", "title", "description"} and names.get("type", "string") == "string"


def _name_pattern(names: Schema) -> str | None:
    if not _COMBINING.isdisjoint(names):
        return None
    if isinstance(pattern := names.get("pattern"), str):
        return None if {"minLength", "maxLength"} & names.keys() or _LOOK_AHEAD.search(pattern) else pattern
    if "format" in names:
        return _NAMES.get(str(names["format"]))
    least, most = names.get("minLength", 0), names.get("maxLength", "")
    is_bound = bool({"minLength", "maxLength"} & names.keys()) and isinstance(least, int)
    return rf"^.{{{least},{most}}}$" if is_bound and (most == "" or isinstance(most, int)) else None


def _values(schema: Any) -> list[Any] | None:
    """Return the values that a schema allows if it lists them."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return [schema["const"]]
    if schema.get("type") == "boolean":
        return [True, False]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


def _distinct(schema: Schema, root: Schema) -> Schema:
    """Write ``uniqueItems`` of a few listed values as all the arrays that they can make."""
    others = {key: value for key, value in schema.items() if key != "uniqueItems"}
    if not schema.get("uniqueItems") or _bound(schema, "maxItems", 2) <= 1:
        return others
    values = _values(_resolved(schema.get("items"), root))
    if values is None or len(values) > _MOST_UNIQUE or len({json.dumps(value) for value in values}) != len(values):
        return schema
    least, most = _bound(schema, "minItems", 0), min(_bound(schema, "maxItems", len(values)), len(values))
    arrays = [_array(order) for length in range(least, most + 1) for order in itertools.permutations(values, length)]
    kept = {key: value for key, value in others.items() if key not in ("items", "type", "minItems", "maxItems")}
    return kept | {"anyOf": arrays} if arrays and "anyOf" not in kept else schema


def _bound(schema: Schema, name: str, default: int) -> int:
    value = schema.get(name, default)
    return value if isinstance(value, int) else default


def _array(values: tuple[Any, ...]) -> Schema:
    items = [{"const": value} for value in values]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items), "maxItems": len(items)}


def _of_format(schema: Schema, _root: Schema) -> Schema:
    """Leave out a ``format`` that is an annotation; write others as a pattern or as a format that is known."""
    given = schema.get("format")
    if not isinstance(given, str) or given in _KNOWN_FORMATS:
        return schema
    others = {key: value for key, value in schema.items() if key != "format"}
    if given in _ALIKE and "pattern" not in schema:
        return others | {"format": _ALIKE[given]}
    if "pattern" not in schema:
        return others | {"pattern": _PATTERNS[given]} if given in _PATTERNS else others
    # Zod's pattern of base64url has no padding.
    together = (
        _PATTERNS[given].replace("==", "(?:==)?").replace("]=", "]=?") if given in ("base64", "base64url") else ""
    )
    return _and_pattern(others, together) if together else others


def _and_pattern(schema: Schema, *patterns: str) -> Schema:
    already = schema.get("allOf", [])
    if not isinstance(already, list):
        return schema  # it is malformed, which is found when it is compiled
    return schema | {"allOf": [*already, *({"pattern": pattern} for pattern in patterns)]}


def _of_bounds(schema: Schema, _root: Schema) -> Schema:
    """Replace bounds that are larger than the grammar library's by its own, such as the largest float32."""
    given = {name: schema[name] for name in _BOUNDS if isinstance(schema.get(name), int | float)}
    low = {name: -_LARGEST for name in _BOUNDS[:2] if given.get(name, 0) < -_LARGEST}
    high = {name: _LARGEST for name in _BOUNDS[2:] if given.get(name, 0) > _LARGEST}
    return schema | low | high


def _of_pattern(schema: Schema, _root: Schema) -> Schema:
    """Write look-aheads at the start of a pattern as patterns that hold together."""
    pattern = schema.get("pattern")
    if not isinstance(pattern, str):
        return schema | {"pattern": r"^([^:]*:){2}[0-5]"} if schema.get("format") in ("time", "date-time") else schema
    if schema.get("format") == "duration" and pattern == _ZOD_DURATION:
        return {key: value for key, value in schema.items() if key != "pattern"}
    first, *others = map(_printable, _split(pattern))
    return _and_pattern(schema, *others) | {"pattern": first} if others else schema | {"pattern": first}


def _split(pattern: str) -> list[str]:
    """Return patterns that together match what ``pattern`` does, those of its first look-aheads last."""
    others: list[str] = []
    rest = pattern
    while found := _LOOK_AHEAD.match(rest):
        if not pattern.startswith("^") or (end := _end_of_group(rest, found.end())) is None:
            break
        inside = rest[found.end() : end]
        if found[1] == "=":
            others.append(f"^(?:{inside.removeprefix('^')})")
        elif (only := _CLASS_ONLY.fullmatch(inside)) is not None:
            others.append(f"[^{only[1]}]")
        else:
            break
        rest = f"^{rest[end + 1 :].removeprefix('^')}"
    return [rest, *others]


def _end_of_group(pattern: str, start: int) -> int | None:
    """Return the index of the bracket that closes the group with the text from ``start``."""
    depth, is_class, index = 1, False, start
    while index < len(pattern):
        match pattern[index]:
            case "\\":
                index += 1
            case "[":
                is_class = True
            case "]":
                is_class = False
            case "(" if not is_class:
                depth += 1
            case ")" if not is_class:
                depth -= 1
                if not depth:
                    return index
        index += 1
    return None


def _printable(pattern: str) -> str:
    return _NEGATED_CLASS.sub(lambda found: found[1] or r"[^\x00-\x1f", pattern)


def in_our_words(error: str, schema: Any = None) -> str:
    """Return what an error of llguidance about a schema means, and what the caller can do."""
    if found := re.match("Unsatisfiable schema: (.*)", error):
        return f"no value matches it: {_why_no_value(found[1], schema)}"
    if found := re.match(r"Unimplemented keys: \[(.*?)\]", error):
        keys = ", ".join(f"`{key}`" for key in json.loads(f"[{found[1]}]"))
        return f"{keys} cannot be followed while an answer is written: leave it out{_HINTS.get(keys, '')}"
    if error.startswith("oneOf constraints"):
        return "the parts of a `oneOf` may overlap: write `anyOf`, or give each part a `const` of its own"
    if error.startswith("Schema intersection stack level"):
        return "its parts are combined too deeply: write `allOf` and what stands beside a `$ref` as one object"
    if error.startswith("regex parse error"):
        return "a `pattern` is malformed or uses look-around or back-references: write it without them"
    return error


def _why_no_value(reason: str, schema: Any) -> str:
    place = _place_of_false(schema, schema, set())
    if place is not None:
        return f"`{'.'.join(place)}` is `false`, which allows no value: give a schema there, or do not require it"
    if found := re.match("required property '(.*)' is unsatisfiable", reason):
        return f"the required property `{found[1]}` can have no value: give it a schema in `properties` that allows one"
    return _REASONS.get(reason, reason)


def _place_of_false(part: Any, root: Schema, seen: set[str], place: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """Return the first place of ``false`` that every value would have to match, None if there is none.

    ``seen``: the references that were followed. A malformed keyword counts as absent.
    """
    if part is False or part == {"not": {}}:
        return place
    reference = part.get("$ref") if isinstance(part, dict) else None
    if isinstance(reference, str):
        if reference in seen:
            return None
        seen.add(reference)
        return _place_of_false(_resolved(part, root), root, seen, tuple(reference.removeprefix("#/").split("/")))
    found = [_place_of_false(one, root, seen, (*place, *steps)) for steps, one in _needed(part)]
    for keyword in ("anyOf", "oneOf"):
        parts = [_place_of_false(one, root, seen, (*place, *steps)) for steps, one in _parts(part, keyword)]
        found += [] if None in parts else parts
    return next((one for one in found if one is not None), None)


def _needed(part: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the place of each schema in a schema that some part of every value must match, and that schema."""
    part = part if isinstance(part, dict) else {}
    named, least, first = part.get("properties"), _bound(part, "minItems", 0), list(_parts(part, "prefixItems"))
    if isinstance(named, dict):
        yield from ((("properties", str(name)), named.get(str(name))) for _, name in _parts(part, "required"))
    yield from (*_parts(part, "allOf"), *first[:least])
    if least > len(first):
        yield ("items",), part.get("items")


def _parts(part: Any, keyword: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    listed = part.get(keyword) if isinstance(part, dict) else None
    yield from (((keyword, str(at)), one) for at, one in enumerate(listed if isinstance(listed, list) else ()))


_REASONS: Mapping[str, str] = {
    "required item is unsatisfiable": "`minItems` requires an item, and `items` allows none",
    "schema is false": "a `$ref` leads to `false`, which allows no value: leave out what refers to it",
    "anyOf is empty": "an `anyOf`, `enum` or `type` is an empty list",
    "incompatible types": "its keywords allow no common type, such as a `const` that is not of the `type`",
}
_HINTS: Mapping[str, str] = {
    "`uniqueItems`": ", give at most five values as `enum` of the items, or `maxItems` 1 (pydantic: a list, no set)",
    "`propertyNames`": ", or write it as `properties` or `patternProperties`",
}

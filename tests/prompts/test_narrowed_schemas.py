"""The form of each narrowed schema, without a grammar: the parts that stay, are rewritten, and are left out."""

from typing import Any

import pytest

from headrace.prompts.schema_narrowing import in_our_words, narrow

_TAG = {"discriminator": {"propertyName": "t"}, "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}
_BASE64 = r"^(?:[0-9a-zA-Z+/]{4})*(?:[0-9a-zA-Z+/][AQgw]==|[0-9a-zA-Z+/]{2}[AEIMQUYcgkosw048]=)?$"
_UNPADDED = r"^(?:[0-9a-zA-Z_-]{4})*(?:[0-9a-zA-Z_-][AQgw](?:==)?|[0-9a-zA-Z_-]{2}[AEIMQUYcgkosw048]=?)?$"
_DATE = r"^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])$"
_DURATION = r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"


def _uuid(version: int) -> str:
    return rf"^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"


def variants(*tags: str, required: list[str] | None = None) -> dict[str, Any]:
    """The parts of a tagged union, each with its tag."""
    names = {} if required is None else {"required": required}
    return {name: {"properties": {"t": {"const": tag}}, **names} for name, tag in zip("AB", tags, strict=True)}


def orders(*arrays: list[object]) -> list[dict[str, Any]]:
    return [
        {"type": "array", "prefixItems": [{"const": one} for one in array], "items": False}
        | dict.fromkeys(("minItems", "maxItems"), len(array))
        for array in arrays
    ]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        # Formats: known ones stay, some are another one or a pattern, all others are annotations.
        *(
            ({"format": name}, {"format": name})
            for name in ("date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
        ),
        ({"format": "color", "type": "string"}, {"type": "string"}),
        *(
            ({"format": name}, {"format": other})
            for name, other in (
                ("url", "uri"),
                ("multi-host-uri", "uri"),
                ("idn-email", "email"),
                ("name-email", "email"),
                ("ipvanyaddress", "ipv4"),
                ("ipvanynetwork", "ipv4"),
                ("ipvanyinterface", "ipv4"),
                ("ipv4network", "ipv4"),
                ("ipv6interface", "ipv6"),
            )
        ),
        ({"format": "idn-email", "pattern": "^a"}, {"pattern": "^a"}),
        ({"format": "byte"}, {"pattern": _BASE64}),
        ({"format": "base64", "type": "string"}, {"type": "string", "pattern": _BASE64}),
        ({"format": "base64url", "pattern": "^x"}, {"pattern": "^x", "allOf": [{"pattern": _UNPADDED}]}),
        ({"format": "byte", "pattern": "^x"}, {"pattern": "^x"}),
        *(({"format": f"uuid{version}"}, {"pattern": _uuid(version)}) for version in (1, 4, 8)),
        ({"format": "time"}, {"format": "time", "pattern": r"^([^:]*:){2}[0-5]"}),
        ({"format": "date-time", "pattern": "^2"}, {"format": "date-time", "pattern": "^2"}),
        ({"format": "duration", "pattern": _DURATION}, {"format": "duration"}),
        # Bounds
        (
            {"minimum": -(10**18) - 1, "exclusiveMaximum": 10**18 + 1, "maximum": 5},
            {"minimum": -(10**18), "exclusiveMaximum": 10**18, "maximum": 5},
        ),
        (
            {"exclusiveMinimum": -(10**20), "maximum": 10**20, "minimum": 10**20},
            {"exclusiveMinimum": -(10**18), "maximum": 10**18, "minimum": 10**20},
        ),
        # Patterns
        (
            {"pattern": "^(?=ab)(?![xy]+$)c"},
            {"pattern": "^c", "allOf": [{"pattern": "^(?:ab)"}, {"pattern": r"[^\x00-\x1fxy]"}]},
        ),
        (
            {"allOf": [{"pattern": "^q"}], "pattern": r"^(?=^a[)]\)(b))c"},
            {"allOf": [{"pattern": "^q"}, {"pattern": r"^(?:a[)]\)(b))"}], "pattern": "^c"},
        ),
        ({"pattern": "^(?!.*x)c"}, {"pattern": "^(?!.*x)c"}),
        ({"pattern": "(?=a)b"}, {"pattern": "(?=a)b"}),
        ({"pattern": r"[^a]\[^b[^]c]"}, {"pattern": r"[^\x00-\x1fa]\[^b[^]c]"}),
        # What is a value or a name is no keyword.
        *(({name: {"format": "color"}},) * 2 for name in ("const", "default")),
        *(({name: [{"format": "color"}]},) * 2 for name in ("enum", "examples")),
        (
            {"properties": {"format": {"format": "color"}}, "patternProperties": {"[^a]": {"format": "color"}}},
            {"properties": {"format": {}}, "patternProperties": {r"[^\x00-\x1fa]": {}}},
        ),
        ({"anyOf": [{"format": "color"}, True]}, {"anyOf": [{}, True]}),
        ({"not": {"format": "color"}}, False),
        # Names of members
        ({"propertyNames": True}, {}),
        ({"propertyNames": {"type": "string", "title": "x", "description": "y"}}, {}),
        ({"propertyNames": {"type": "integer"}}, {"propertyNames": {"type": "integer"}}),
        (
            {"propertyNames": {"enum": ["a", 1]}, "additionalProperties": {"type": "integer"}},
            {"properties": {"a": {"type": "integer"}}, "additionalProperties": False},
        ),
        (
            {"propertyNames": {"$ref": "#/$defs/a~1b~0"}, "$defs": {"a/b~": {"const": "k"}}},
            {"properties": {"k": True}, "additionalProperties": False, "$defs": {"a/b~": {"const": "k"}}},
        ),
        (
            {"propertyNames": {"pattern": "^b"}, "additionalProperties": {"type": "integer"}},
            {"patternProperties": {"^b": {"type": "integer"}}, "additionalProperties": False},
        ),
        *(
            ({"propertyNames": names}, {"patternProperties": {pattern: True}, "additionalProperties": False})
            for names, pattern in (
                ({"format": "date"}, _DATE),
                ({"minLength": 2}, "^.{2,}$"),
                ({"minLength": 2, "maxLength": 5}, "^.{2,5}$"),
                ({"maxLength": 5}, "^.{0,5}$"),
            )
        ),
        *(
            ({"propertyNames": names, **more},) * 2
            for names, more in (
                ({"format": "email"}, {}),
                ({"enum": ["a", "bc"], "minLength": 2}, {}),
                ({"pattern": "^b", "minLength": 2}, {}),
                ({"pattern": "^b", "not": {"const": "bc"}}, {}),
                ({"pattern": "(?=a)b"}, {}),
                ({"enum": ["a"]}, {"patternProperties": {}}),
                ({"enum": ["a"]}, {"properties": {"a": {}}}),
            )
        ),
        # A look-ahead is a second pattern, so the names stay as they are, and are refused.
        (
            {"propertyNames": {"pattern": "^(?=a)b"}},
            {"propertyNames": {"pattern": "^b", "allOf": [{"pattern": "^(?:a)"}]}},
        ),
        # Distinct values
        ({"uniqueItems": False, "items": {}}, {"items": {}}),
        ({"uniqueItems": True, "maxItems": 1, "items": {}}, {"maxItems": 1, "items": {}}),
        (
            {"type": "array", "uniqueItems": True, "minItems": 1, "items": {"type": "boolean"}, "title": "x"},
            {"title": "x", "anyOf": orders([True], [False], [True, False], [False, True])},
        ),
        (
            {"uniqueItems": True, "maxItems": 2, "items": {"enum": ["a", "b", "c"]}},
            {"anyOf": orders([], *"abc", "ab", "ac", "ba", "bc", "ca", "cb")},
        ),
        ({"uniqueItems": True, "maxItems": 2, "items": {"enum": [*"abcdef"]}},) * 2,
        ({"uniqueItems": True, "items": {"enum": ["a"]}, "anyOf": [{}]},) * 2,
        # Tagged unions
        (
            {"$defs": variants("a", "b", required=["x"]), **_TAG},
            {"$defs": variants("a", "b", required=["x", "t"]), "anyOf": _TAG["oneOf"]},
        ),
        ({"$defs": variants("a", "a"), **_TAG}, {"$defs": variants("a", "a", required=["t"]), **_TAG}),
        (
            {"$defs": variants("a", "b"), "items": _TAG},
            {"$defs": variants("a", "b", required=["t"]), "items": {"anyOf": _TAG["oneOf"]}},
        ),
        ({"$defs": variants("a", "b"), "enum": [_TAG]},) * 2,
    ],
)
def test_a_schema_is_written_as_the_grammar_library_can_follow_it(given: Any, made: Any) -> None:
    assert narrow(given) == made


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            'Unimplemented keys: ["uniqueItems"] and more',
            "`uniqueItems` ",
        ),
        (
            'Unimplemented keys: ["propertyNames"]',
            "`propertyNames` ",
        ),
        (
            'Unimplemented keys: ["a", "b"]',
            "`a`, `b` ",
        ),
        (
            "oneOf constraints may overlap",
            "`const`",
        ),
        (
            "Schema intersection stack level exceeded",
            "`$ref`",
        ),
        (
            "regex parse error: x",
            "`pattern`",
        ),
        ("another", "another"),
    ],
)
def test_an_error_of_the_library_says_what_to_do(error: str, said: str) -> None:
    assert said in in_our_words(error)


_CYCLE = {"anyOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/x"}]}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"required": ["b", "a"], "properties": {"a": {"not": {}}, "b": True}}, "properties.a"),
        ({"allOf": [{}, {"items": False, "minItems": 1}]}, "allOf.1.items"),
        ({"prefixItems": [{}, False], "minItems": 2}, "prefixItems.1"),
        ({"prefixItems": [{}], "items": False, "minItems": 2}, "items"),
        ({"anyOf": [False, {"allOf": [False]}]}, "anyOf.0"),
        ({"oneOf": [False]}, "oneOf.0"),
        ({"allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": False}}, "$defs.x"),
        ({"allOf": [{"$ref": "#/$defs/x"}, False], "$defs": {"x": _CYCLE}}, "allOf.1"),
        ({"required": ["b"], "properties": {"a": False}, "items": False}, None),
        ({"prefixItems": [{}, False], "items": False, "minItems": 1}, None),
        ({"anyOf": [False, {}], "additionalProperties": False}, None),
        ({"required": 5, "properties": 5, "allOf": {}, "prefixItems": "x", "minItems": "y"}, None),
    ],
)
def test_the_place_of_a_schema_that_allows_no_value_is_named(schema: dict[str, object], place: str | None) -> None:
    said = in_our_words("Unsatisfiable schema: for a reason\nand more", schema)
    assert ("for a reason" if place is None else f"`{place}` is `false`") in said


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("required property 'a b' is unsatisfiable", "`a b`"),
        ("schema is false", "`$ref`"),
        ("anyOf is empty", "`anyOf`"),
        ("incompatible types", "common type"),
        ("minimum (5) is greater than maximum (3)", "minimum (5) is greater than maximum (3)"),
    ],
)
def test_a_schema_without_a_value_says_why(reason: str, said: str) -> None:
    assert said in in_our_words(f"Unsatisfiable schema: {reason}", {})

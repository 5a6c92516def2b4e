"""JSON schemas of tenants: what multiplies is bounded, and what is usual is followed."""

from typing import Any

import pytest

from headrace.policy.schemas import check_schema, first_problem, is_valid

ANY = {
    "anyOf": [
        {"type": ["integer", "string"]},
        {"type": "object", "additionalProperties": {"$ref": "#"}},
        {"type": "array", "items": {"$ref": "#"}},
    ]
}


def doubling(levels: int) -> dict[str, Any]:
    both = {n: {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"$ref": f"#/$defs/a{n + 1}"}]} for n in range(levels)}
    return {"$defs": {**{f"a{n}": one for n, one in both.items()}, f"a{levels}": {}}, "$ref": "#/$defs/a0"}


def unevaluated(levels: int) -> dict[str, Any]:
    inside = unevaluated(levels - 1) if levels else {}
    return {"allOf": [inside], "unevaluatedProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        doubling(20),
        unevaluated(20),
        {"pattern": "(?:(?:a|b){0,100}a(?:a|b){100}){20}c"},
        {"$ref": "#/$defs/none"},
        {"$defs": {"a": {"$id": "urn:a", "$ref": "#/$defs/a"}}},
    ],
)
def test_a_schema_that_multiplies_or_refers_elsewhere_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`variables` (has over|is no schema)"):
        check_schema(schema, "variables")


def test_a_large_value_is_not_checked_against_a_large_schema() -> None:
    validator = check_schema({"anyOf": [{"type": "string"}] * 40})
    place, said = first_problem(validator, [1] * 100_000) or ("", "")
    assert (place, "too large" in said) == ("", True)
    assert not is_valid(validator, "[" + "1," * 100_000 + '""]')
    assert first_problem(validator, "x" * 1_000_000) is None


def test_what_refers_to_itself_is_followed() -> None:
    validator = check_schema(ANY)
    assert first_problem(validator, {"a": [{"b": [1, {"c": "x"}]}]}) is None
    assert first_problem(validator, {"a": [{"b": [1, {"c": 1.5}]}]}) is not None
    assert is_valid(check_schema(doubling(3)), "1")

"""Schemas that real pydantic and zod write: followed, and then every answer is one that they accept."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pydantic import TypeAdapter

from headrace.prompts.grammar import Grammars
from headrace.store.errors import InvalidRequest
from tests.prompts.pydantic_models import REFUSED, TYPES, WIDER
from tests.schemas import a_double

EOS = 256
ZOD: dict[str, Any] = json.loads((Path(__file__).parent / "zod_schemas.json").read_text())
# As zod writes them; no grammar can look ahead in the middle of a text.
_ZOD_REFUSED = {"look-ahead in the middle"}
_NUM_WALKS = 6
_LONGEST = 400
# Older pydantic writes this, and so do programs that pin it.
_DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(None, vocab_size=EOS + 1, eos_token_ids=frozenset({EOS}))


def answers(grammars: Grammars, schema: object) -> list[str]:
    """Write answers at random, as a model without any sense would, that tends to the end."""
    found = []
    for seed in range(_NUM_WALKS):
        draw, matcher = random.Random(seed), grammars.matcher("json_schema", json.dumps(schema))
        output: list[int] = []
        while len(output) < _LONGEST:
            (mask,) = matcher.masks()
            allowed = [token for token in range(EOS + 1) if mask[token // 8] >> token % 8 & 1]
            ends = [token for token in allowed if token == EOS or chr(token) in '"]}']
            token = draw.choice(ends if ends and draw.random() < 0.4 else allowed)
            if token == EOS:
                found.append(bytes(output).decode())
                break
            output.append(token)
            matcher.follow(output)
            assert not matcher.is_stuck
    return found


def is_valid(schema: Any, answer: str) -> bool:
    # The validator wants padding in base64url, which zod refuses.
    checked = {key: part for key, part in schema.items() if (key, part) != ("contentEncoding", "base64url")}
    value = json.loads(answer, parse_float=a_double)
    return bool(jsonschema_rs.validator_for(checked, validate_formats=False).is_valid(value))


@pytest.mark.parametrize("name", TYPES)
def test_pydantic_reads_every_answer_to_its_schema(grammars: Grammars, name: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(TYPES[name])
    for mode in ("validation", "serialization"):
        schema = adapter.json_schema(mode=mode)  # type: ignore[arg-type]
        for answer in answers(grammars, schema):
            assert is_valid(schema, answer), answer
            if mode == "validation" and name not in WIDER:
                adapter.validate_json(answer)


# In every run each schema in the newer form: as draft 7 most are the same.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] if "draft 7" in name else []) for name in ZOD]
)
def test_every_answer_validates_against_zods_schema(grammars: Grammars, name: str) -> None:
    if name.partition(",")[0] in _ZOD_REFUSED:
        with pytest.raises(InvalidRequest, match="look-around"):
            grammars.check("json_schema", json.dumps(ZOD[name]))
        return
    for answer in answers(grammars, ZOD[name]):
        assert is_valid(ZOD[name], answer), answer


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_said_in_our_words(grammars: Grammars, name: str) -> None:
    kind, words = REFUSED[name]
    with pytest.raises(InvalidRequest, match=words) as refused:
        grammars.check("json_schema", json.dumps(TypeAdapter(kind).json_schema()))
    assert refused.value.code == "invalid_json_schema"


def test_a_decimal_is_a_number_as_text(grammars: Grammars) -> None:
    found = answers(grammars, {"type": "string", "pattern": _DECIMAL})
    assert found
    for answer in found:
        TypeAdapter(float).validate_python(json.loads(answer))


def test_a_pattern_stands_for_the_format_beside_it(grammars: Grammars) -> None:
    found = {json.loads(one) for one in answers(grammars, {"type": "string", "format": "byte", "pattern": "^[ab]$"})}
    assert found
    assert found <= {"a", "b"}


@pytest.mark.parametrize(
    "schema",
    [
        {"propertyNames": 5},
        {"propertyNames": {"format": ["uuid"]}},
        {"propertyNames": {"minLength": "2"}},
        {"propertyNames": {"$ref": "#/$defs/nowhere"}},
        {"propertyNames": {"pattern": r"^(?=ab)\w+$"}},
        {"propertyNames": {"enum": ["a"]}, "properties": {"b": {}}},
        {"type": "array", "uniqueItems": True, "items": {"$ref": 5}},
        {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "a"]}},
        {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b"]}, "minItems": 3},
        {"type": "string", "pattern": "^(?=a)b", "allOf": 5},
        {"type": "string", "pattern": "^(?=a"},
        {"minimum": "x", "maximum": 10**30, "format": {}},
    ],
)
def test_what_is_malformed_or_without_a_form_is_refused(grammars: Grammars, schema: object) -> None:
    with pytest.raises(InvalidRequest, match="cannot be followed: "):
        grammars.check("json_schema", json.dumps(schema))

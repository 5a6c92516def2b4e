"""Structured outputs: OpenAI's ``response_format`` and vLLM's ``structured_outputs``, converted to a grammar.

``response_format`` is for JSON, ``structured_outputs`` also for regex, choice and grammar. The grammar is compiled with
the model's tokenizer when the job is submitted; a grammar that does not compile is refused then.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StrictBool, StringConstraints, ValidationError

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.sampling_params import MAX_GRAMMAR_CHARS, GrammarKind, GrammarSpec
from headrace.store.payloads.strict_model import Body


class JsonSchemaFormat(Body):
    """A named schema. The answer always follows it strictly, with or without ``strict``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    schema_: dict[str, Any] | StrictBool | None = Field(None, alias="schema")
    strict: StrictBool | None = None
    description: str | None = None


class ResponseFormat(Body):
    """Text, any JSON object, or JSON that matches a schema."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | StrictBool | None = Field(
        None, alias="schema", description="an extension: of json_object, the schema of the object, as in llama.cpp"
    )
    value: dict[str, Any] | StrictBool | None = Field(
        None, description="an extension: the same by the name of text-generation-inference"
    )


class StructuredOutputs(Body):
    """vLLM's constraint on the answer: exactly one of the four."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    json_: dict[str, Any] | StrictBool | str | None = Field(
        None, alias="json", description="a JSON schema, as an object or as text"
    )
    regex: str | None = Field(None, description="in the syntax of Rust's regex crate")
    choice: tuple[str, ...] | None = Field(None, description="the answer is one of these")
    grammar: str | None = Field(None, description="a Lark grammar in llguidance's dialect")


# vLLM's old names of the fields in ``structured_outputs``.
GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}


def structured_of(structured: StructuredOutputs | None, extra: Mapping[str, Any]) -> StructuredOutputs | None:
    """Return the constraint on the answer, also if it has vLLM's old names among the ``extra`` fields of the request.

    Raises InvalidRequest if the two differ.
    """
    given = {name: extra[name] for name in GUIDED if extra.get(name) is not None}
    if not given:
        return structured
    first = next(iter(given))
    if len(given) > 1:
        raise InvalidRequest(f"give exactly one of {', '.join(given)}: an answer follows one grammar", param=first)
    try:
        guided = StructuredOutputs.model_validate({GUIDED[name]: value for name, value in given.items()})
    except ValidationError as error:
        raise InvalidRequest(f"`{first}` cannot be read: {error.errors()[0]['msg']}", param=first) from error
    if structured is not None and structured != guided:
        raise InvalidRequest(
            f"`{first}` and `structured_outputs` differ: leave out `{first}`, the older name", param=first
        )
    return guided


def grammar_of(response_format: ResponseFormat | None, structured: StructuredOutputs | None) -> GrammarSpec | None:
    """Return the requested grammar, None for free text. Raises InvalidRequest."""
    by_format = None if response_format is None else _of_format(response_format)
    if structured is None:
        return by_format
    if by_format is not None:
        raise InvalidRequest(
            "give one of `response_format` and `structured_outputs`: an answer follows one grammar",
            param="structured_outputs",
        )
    return _of_structured(structured)


def json_grammar(schema: dict[str, Any] | bool | str, param: str) -> GrammarSpec:
    """Return the grammar of a JSON schema. Raises InvalidRequest if it is too long or too deeply nested."""
    try:
        # Keep the schema's key order: it is the order of properties in the answer.
        text = schema if isinstance(schema, str) else json.dumps(schema)
    except RecursionError:
        raise InvalidRequest(f"`{param}` is nested too deeply", code="invalid_json_schema", param=param) from None
    return _spec(GrammarKind.JSON_SCHEMA, text, param)


def _of_format(asked: ResponseFormat) -> GrammarSpec | None:
    match asked.type:
        case "text":
            return None
        case "json_object":
            return _of_object(asked)
        case "json_schema":
            schema = None if asked.json_schema is None else asked.json_schema.schema_
            if schema is None:
                param = "response_format.json_schema.schema"
                raise InvalidRequest(f"`{param}` is required", param=param)
            return json_grammar(schema, "response_format.json_schema.schema")
        case other:
            raise InvalidRequest(
                f"`response_format.type` {other[:40]!r} is not supported: one of text, json_object, json_schema",
                code="unsupported_parameter",
                param="response_format.type",
            )


def _of_object(asked: ResponseFormat) -> GrammarSpec:
    """Return the grammar of any JSON object, or of one whose schema stands beside the type."""
    inner = None if asked.json_schema is None else asked.json_schema.schema_
    beside = {"schema": asked.schema_, "value": asked.value, "json_schema.schema": inner}
    given = {f"response_format.{name}": schema for name, schema in beside.items() if schema is not None}
    if len(given) > 1:
        first, second = list(given)[:2]
        raise InvalidRequest(f"give one of `{first}` and `{second}`: an answer follows one schema", param=second)
    param, schema = next(iter(given.items()), ("response_format", {"type": "object"}))
    return json_grammar(schema, param)


def _of_structured(asked: StructuredOutputs) -> GrammarSpec:
    given = {name: value for name, value in asked if value is not None}
    if len(given) != 1:
        raise InvalidRequest(
            "`structured_outputs` takes exactly one of json, regex, choice and grammar", param="structured_outputs"
        )
    ((name, value),) = given.items()
    param = f"structured_outputs.{name.removesuffix('_')}"
    match name:
        case "json_":
            return json_grammar(value, param)
        case "choice":
            return _spec(GrammarKind.CHOICE, json.dumps(value, ensure_ascii=False), param)
        case _:
            return _spec(GrammarKind.REGEX if name == "regex" else GrammarKind.LARK, value, param)


def _spec(kind: GrammarKind, text: str, param: str) -> GrammarSpec:
    if not 1 <= len(text) <= MAX_GRAMMAR_CHARS:
        raise InvalidRequest(
            f"`{param}` has {len(text)} characters as text, and 1 to {MAX_GRAMMAR_CHARS} are accepted",
            code="invalid_json_schema" if kind is GrammarKind.JSON_SCHEMA else None,
            param=param,
        )
    return GrammarSpec(kind=kind, text=text)

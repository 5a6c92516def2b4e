"""A JSON schema that no value matches is refused in our words, at its field, by every route that takes one."""

import json
from typing import Any

import httpx2
import pytest

from headrace.store.db.database import Database
from tests.cases import of
from tests.producer_api.calling import CHAT, PROMPT, error_of, num_jobs

NEVER: dict[str, Any] = {"type": "object", "properties": {"city": False}, "required": ["city"]}
MESSAGE: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "messages": CHAT["messages"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": NEVER}}
MINE = {"type": "function", "function": {"name": "f"}}


def formatted(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def of_response(schema: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}


def of_message(schema: Any) -> dict[str, Any]:
    return MESSAGE | {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


def native(schema: Any) -> dict[str, Any]:
    return PROMPT | {"sampling": {"grammar": {"kind": "json_schema", "text": json.dumps(schema)}}}


PLACE = "no value matches it: `properties.city` is `false`, which allows no value: give a schema there"
WHOLE = 'false allows no value: give a schema, such as {"type": "object"}'
OBJECT = "input should be a valid object"
CALLS = {"tools": [TOOL], "tool_choice": "required"}

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/jobs", native(NEVER), "sampling.grammar", PLACE),
    ("/v1/jobs", native(False), "sampling.grammar", WHOLE),
    ("/v1/chat/completions", CHAT | formatted(NEVER), "response_format", PLACE),
    ("/v1/chat/completions", CHAT | formatted(False), "response_format", WHOLE),
    ("/v1/chat/completions", CHAT | {"structured_outputs": {"json": "false"}}, "structured_outputs", WHOLE),
    ("/v1/chat/completions", CHAT | {"guided_json": NEVER}, "guided_json", PLACE),
    ("/v1/chat/completions", CHAT | CALLS, "tools[0].function.parameters", PLACE),
    ("/v1/chat/completions", CHAT | formatted(NEVER) | {"tools": [MINE]}, "response_format", PLACE),
    ("/v1/chat/completions", CHAT | formatted(False) | {"tools": [MINE]}, "response_format", WHOLE),
    ("/v1/completions", {"model": "tiny", "prompt": "x"} | formatted(False), "response_format", WHOLE),
    ("/v1/responses", of_response(NEVER), "text.format", PLACE),
    ("/v1/responses", of_response(False), "text.format", WHOLE),
    *of(
        "anthropic",
        ("/v1/messages", of_message(NEVER), "output_config.format", PLACE),
        ("/v1/messages", of_message(False), "output_config.format.schema", OBJECT),
    ),
]


def test_a_schema_that_no_value_matches_is_refused_at_its_field(
    api: httpx2.Client, db: Database, subtests: pytest.Subtests
) -> None:
    for route, body, param, words in CASES:
        with subtests.test(f"{route} {param} {words}"):
            answer = api.post(route, json=body)
            error = answer.json()["error"] if route == "/v1/messages" else error_of(answer)
            assert answer.status_code == 400, error
            assert words in error["message"]
            assert "nsatisfiable" not in error["message"]
            assert error.get("param", param) == param
    assert num_jobs(db) == 0


def test_a_schema_that_is_true_allows_any_json(api: httpx2.Client) -> None:
    assert api.post("/v1/jobs", json=native(True)).status_code == 202

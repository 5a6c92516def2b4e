"""Chats that become no job: the error says which field is wrong, and how. No server."""

from typing import Any

import pytest

from headrace.features.openai.foreign_fields import INSTEAD, INSTEAD_OF_FILES
from tests.features.openai.openai_requests import CALL, TOOL, chat_job, form
from tests.producer_api.request_outcomes import Refused, refusal_of
from tests.refusals import Naming


def turn(**fields: Any) -> dict[str, Any]:
    """A chat of one message with these fields."""
    return {"messages": [{"role": "user", "content": "hi"} | fields]}


REFUSED_CHATS: Refused = [
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options", "`stream`"),
    ({"best_of": 1, "n": 2}, "invalid_value", "best_of", "`n` is 2"),
    ({"best_of": 2}, "unsupported_parameter", "best_of", "`n`", "logprobs"),
    ({"n": 17}, "invalid_value", "n", "to 16"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs", "`logprobs`"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens", "echo"),
    ({"max_completion_tokens": 0, "max_tokens": 5}, "invalid_value", "max_completion_tokens", "echo", "to 1"),
    ({"ignore_eos": True, "response_format": {"type": "json_object"}}, "invalid_value", "ignore_eos", "grammar"),
    ({"temperature": 3}, "invalid_value", "temperature", "to 2"),
    ({"job": {"priority": 11}}, "invalid_value", "job.priority", "to 9"),
    ({"job": {"deadline_ms": 0}}, "invalid_value", "job.deadline_ms", "to 1"),
    ({"response_format": {"type": "xml"}}, "unsupported_parameter", "response_format.type", "xml"),
    ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format.json_schema.schema", "required"),
    (form(None), "invalid_value", "response_format.json_schema.schema", "required"),
    ({"structured_outputs": {}}, "invalid_value", "structured_outputs", "json, regex, choice"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "invalid_value", "structured_outputs", "json, regex, choice"),
    ({"structured_outputs": {"regex": ""}}, "invalid_value", "structured_outputs.regex", "0 characters", "65536"),
    ({"structured_outputs": {"json": ""}}, "invalid_json_schema", "structured_outputs.json", "0 characters", "65536"),
    (
        {"structured_outputs": {"choice": ["x" * 70_000]}},
        "invalid_value",
        "structured_outputs.choice",
        "has 70004",
        "to 65536",
    ),
    (form({"x" * 70_000: 1}), "invalid_json_schema", "response_format.json_schema.schema", "has 70007", "to 65536"),
    ({"guided_json": {}, "guided_regex": "a"}, "invalid_value", "guided_json", "guided_regex"),
    ({"guided_choice": 5}, "invalid_value", "guided_choice", "read"),
    (
        {"guided_regex": "a", "structured_outputs": {"regex": "b"}},
        "invalid_value",
        "guided_regex",
        "structured_outputs",
    ),
    ({"guided_regex": ""}, "invalid_value", "structured_outputs.regex", "0 characters", "65536"),
    (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "invalid_value",
        "structured_outputs",
        "response_format",
    ),
    ({"tools": [TOOL, {"type": "web"}]}, "unsupported_parameter", "tools[1].type", "web"),
    ({"tools": [TOOL, TOOL]}, "invalid_value", "tools", "named f"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}},
        "unsupported_parameter",
        "tool_choice.type",
        "allowed_tools",
    ),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice", "tools"),
    (turn(role="poet"), "unsupported_parameter", "messages[0].role", "poet"),
    (turn(role="assistant", function_call={"name": "f"}), "unsupported_parameter", "messages[0].function_call"),
    (turn(role="assistant", audio={"id": "a"}), "unsupported_parameter", "messages[0].audio"),
    (
        turn(role="assistant", tool_calls=[CALL, CALL | {"type": "custom"}]),
        "unsupported_parameter",
        "messages[0].tool_calls[1].type",
        "custom",
    ),
    (
        turn(content=[{"type": "text", "text": "a"}, {"type": "input_audio"}]),
        "unsupported_parameter",
        "messages[0].content[1].type",
        "input_audio",
    ),
    (turn(content=[{"type": "text"}]), "invalid_value", "messages[0].content[0].text", "required"),
    (turn(content=[{"type": "image_url"}]), "invalid_value", "messages[0].content[0].image_url", "required"),
    (
        {"response_format": {"type": "json_object", "schema": {}, "value": {}}},
        "invalid_value",
        "response_format.value",
        "response_format.schema",
    ),
    (
        turn(content=[{"type": "file", "file": {"file_data": "data:application/pdf;base64,AA=="}}]),
        "unsupported_parameter",
        "messages[0].content[0].file.file_data",
        INSTEAD_OF_FILES,
    ),
    (turn(content=[{"type": "file", "file": {}}]), "invalid_value", "messages[0].content[0].file.file_id", "required"),
    (
        turn(role="assistant", content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "image_url",
    ),
    (turn(content=None, refusal="x"), "invalid_value", "messages[0].content", "required"),
    (
        turn(role="system", content=[{"type": "refusal", "refusal": "x"}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "refusal",
    ),
    ({"reasoning": {"summary": "concise"}}, "unsupported_parameter", "reasoning.summary", "auto", "detailed"),
    (
        {"reasoning": {"generate_summary": "concise"}},
        "unsupported_parameter",
        "reasoning.generate_summary",
        "auto",
        "detailed",
    ),
    ({"reasoning": {"exclude": True}}, "unsupported_parameter", "reasoning.exclude"),
    (
        {"reasoning": {"effort": "low"}, "reasoning_effort": "high"},
        "invalid_value",
        "reasoning_effort",
        "another field",
    ),
    ({"enable_thinking": True, "reasoning_effort": "none"}, "invalid_value", "reasoning_effort", "on and off"),
    ({"reasoning": {"enabled": True}, "enable_thinking": False}, "invalid_value", "reasoning.enabled", "on and off"),
    ({"thinking_budget": 5, "reasoning": {"max_tokens": 6}}, "invalid_value", "thinking_budget", "another field"),
    ({"thinking_budget": 0}, "invalid_value", "thinking_budget", "to 1"),
    ({"reasoning": {"max_tokens": 0}}, "invalid_value", "reasoning.max_tokens", "to 1"),
    ({"verbosity": "low"}, "unsupported_parameter", "verbosity", "instructions"),
    (
        {"retrieval": {"vector_store_ids": ["vs_1"]}, "server_tools": {"names": ["a"]}, "store": True},
        "unsupported_parameter",
        "store",
        "retrieval",
    ),
    ({"server_tools": {"names": ["a"]}, "store": False}, "unsupported_parameter", "store", "server_tools"),
    (
        {"server_tools": {"names": ["a"]}, "stream": True, "logprobs": True},
        "unsupported_parameter",
        "logprobs",
        "server_tools",
    ),
    ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions", "tools"),
    ({"modalities": ["audio"]}, "unsupported_parameter", "modalities"),
    (
        {"web_search_options": {}},
        "unsupported_parameter",
        "web_search_options",
        INSTEAD["web_search_options"],
    ),
    ({"Max-Tokens": 1}, "unsupported_parameter", "Max-Tokens", "max_tokens"),
]


def test_an_error_names_the_field_of_the_chat(subtests: pytest.Subtests) -> None:
    for changes, code, param, *named in REFUSED_CHATS:
        with subtests.test(f"{code} {param}", named=named):
            assert refusal_of(chat_job, changes) == (code, param, Naming(*named))

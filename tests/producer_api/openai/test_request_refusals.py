"""Chats that become no job: the error says which field is wrong, and how. No server."""

from typing import Any

import pytest

from headrace.producer_api.openai.foreign_fields import INSTEAD, INSTEAD_OF_FILES
from tests.producer_api.openai.openai_requests import CALL, TOOL, chat_job, form
from tests.producer_api.request_outcomes import Refused, refuse_all


def turn(**fields: Any) -> dict[str, Any]:
    """A chat of one message with these fields."""
    return {"messages": [{"role": "user", "content": "hi"} | fields]}


REFUSED_CHATS: Refused = [
    (
        {"stream_options": {"include_usage": True}},
        "invalid_value",
        "stream_options",
        "`stream_options` is for streams: set `stream` to true",
    ),
    ({"best_of": 1, "n": 2}, "invalid_value", "best_of", "`best_of` is 1 and `n` is 2: leave out `best_of`"),
    (
        {"best_of": 2},
        "unsupported_parameter",
        "best_of",
        "`best_of` over `n` is not supported: send 2 as `n` with `logprobs`, and choose an answer",
    ),
    ({"n": 17}, "invalid_value", "n", "`n`: input should be less than or equal to 16"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs", "`top_logprobs` needs `logprobs`: set it to true"),
    (
        {"max_tokens": 0},
        "invalid_value",
        "max_tokens",
        "`max_tokens`: it should be greater than or equal to 1: 0 is for `echo`",
    ),
    (
        {"max_completion_tokens": 0, "max_tokens": 5},
        "invalid_value",
        "max_completion_tokens",
        "`max_completion_tokens`: it should be greater than or equal to 1: 0 is for `echo`",
    ),
    (
        {"ignore_eos": True, "response_format": {"type": "json_object"}},
        "invalid_value",
        "ignore_eos",
        "`ignore_eos`: an answer that follows a grammar ends with it: leave out `ignore_eos`",
    ),
    ({"temperature": 3}, "invalid_value", "temperature", "`temperature`: input should be less than or equal to 2"),
    (
        {"job": {"priority": 11}},
        "invalid_value",
        "job.priority",
        "`job.priority`: input should be less than or equal to 9",
    ),
    (
        {"job": {"deadline_ms": 0}},
        "invalid_value",
        "job.deadline_ms",
        "`job.deadline_ms`: input should be greater than or equal to 1",
    ),
    (
        {"response_format": {"type": "xml"}},
        "unsupported_parameter",
        "response_format.type",
        "`response_format.type` 'xml' is not supported: one of text, json_object, json_schema",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "invalid_value",
        "response_format.json_schema.schema",
        "`response_format.json_schema.schema` is required",
    ),
    (
        form(None),
        "invalid_value",
        "response_format.json_schema.schema",
        "`response_format.json_schema.schema` is required",
    ),
    (
        {"structured_outputs": {}},
        "invalid_value",
        "structured_outputs",
        "`structured_outputs` takes exactly one of json, regex, choice and grammar",
    ),
    (
        {"structured_outputs": {"json": {}, "regex": "a"}},
        "invalid_value",
        "structured_outputs",
        "`structured_outputs` takes exactly one of json, regex, choice and grammar",
    ),
    (
        {"structured_outputs": {"regex": ""}},
        "invalid_value",
        "structured_outputs.regex",
        "`structured_outputs.regex` has 0 characters as text, and 1 to 65536 are accepted",
    ),
    (
        {"structured_outputs": {"json": ""}},
        "invalid_json_schema",
        "structured_outputs.json",
        "`structured_outputs.json` has 0 characters as text, and 1 to 65536 are accepted",
    ),
    (
        {"structured_outputs": {"choice": ["x" * 70_000]}},
        "invalid_value",
        "structured_outputs.choice",
        "`structured_outputs.choice` has 70004 characters as text, and 1 to 65536 are accepted",
    ),
    (
        form({"x" * 70_000: 1}),
        "invalid_json_schema",
        "response_format.json_schema.schema",
        "`response_format.json_schema.schema` has 70007 characters as text, and 1 to 65536 are accepted",
    ),
    (
        {"guided_json": {}, "guided_regex": "a"},
        "invalid_value",
        "guided_json",
        "give exactly one of guided_json, guided_regex: an answer follows one grammar",
    ),
    (
        {"guided_choice": 5},
        "invalid_value",
        "guided_choice",
        "`guided_choice` cannot be read: Input should be a valid tuple",
    ),
    (
        {"guided_regex": "a", "structured_outputs": {"regex": "b"}},
        "invalid_value",
        "guided_regex",
        "`guided_regex` and `structured_outputs` differ: leave out `guided_regex`, the older name",
    ),
    (
        {"guided_regex": ""},
        "invalid_value",
        "structured_outputs.regex",
        "`structured_outputs.regex` has 0 characters as text, and 1 to 65536 are accepted",
    ),
    (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "invalid_value",
        "structured_outputs",
        "give one of `response_format` and `structured_outputs`: an answer follows one grammar",
    ),
    (
        {"tools": [TOOL, {"type": "web"}]},
        "unsupported_parameter",
        "tools[1].type",
        "`tools[1].type` 'web' is not supported: only functions are",
    ),
    (
        {"tools": [TOOL, TOOL]},
        "invalid_value",
        "tools",
        "`tools`: two functions are named f: each needs a name of its own",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}},
        "unsupported_parameter",
        "tool_choice.type",
        "`tool_choice.type` 'allowed_tools' is not supported: name a function",
    ),
    (
        {"tool_choice": "required"},
        "invalid_value",
        "tool_choice",
        "`tool_choice`: there is nothing to choose from: give `tools` as well",
    ),
    (
        turn(role="poet"),
        "unsupported_parameter",
        "messages[0].role",
        "`messages[0].role` 'poet' is not supported: one of system, developer, user, assistant, tool",
    ),
    (
        turn(role="assistant", function_call={"name": "f"}),
        "unsupported_parameter",
        "messages[0].function_call",
        "`messages[0].function_call` is not supported",
    ),
    (
        turn(role="assistant", audio={"id": "a"}),
        "unsupported_parameter",
        "messages[0].audio",
        "`messages[0].audio` is not supported",
    ),
    (
        turn(role="assistant", tool_calls=[CALL, CALL | {"type": "custom"}]),
        "unsupported_parameter",
        "messages[0].tool_calls[1].type",
        "`messages[0].tool_calls[1].type` 'custom' is not supported: only calls of functions are",
    ),
    (
        turn(content=[{"type": "text", "text": "a"}, {"type": "input_audio"}]),
        "unsupported_parameter",
        "messages[0].content[1].type",
        "`messages[0].content[1].type` 'input_audio' is not supported: parts of the user are text, "
        "image_url, and file with a file_id",
    ),
    (
        turn(content=[{"type": "text"}]),
        "invalid_value",
        "messages[0].content[0].text",
        "`messages[0].content[0].text` is required",
    ),
    (
        turn(content=[{"type": "image_url"}]),
        "invalid_value",
        "messages[0].content[0].image_url",
        "`messages[0].content[0].image_url` is required",
    ),
    (
        {"response_format": {"type": "json_object", "schema": {}, "value": {}}},
        "invalid_value",
        "response_format.value",
        "give one of `response_format.schema` and `response_format.value`: an answer follows one schema",
    ),
    (
        turn(content=[{"type": "file", "file": {"file_data": "data:application/pdf;base64,AA=="}}]),
        "unsupported_parameter",
        "messages[0].content[0].file.file_data",
        f"`messages[0].content[0].file.file_data` is not supported: {INSTEAD_OF_FILES}",
    ),
    (
        turn(content=[{"type": "file", "file": {}}]),
        "invalid_value",
        "messages[0].content[0].file.file_id",
        "`messages[0].content[0].file.file_id` is required",
    ),
    (
        turn(role="assistant", content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "`messages[0].content[0].type` 'image_url' is not supported: only text parts are; images stand "
        "in messages of the user",
    ),
    (turn(content=None, refusal="x"), "invalid_value", "messages[0].content", "`messages[0].content` is required"),
    (
        turn(role="system", content=[{"type": "refusal", "refusal": "x"}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "`messages[0].content[0].type` 'refusal' is not supported: only text parts are",
    ),
    (
        {"reasoning": {"summary": "concise"}},
        "unsupported_parameter",
        "reasoning.summary",
        "`reasoning.summary` is not supported: the reasoning is shown as it is, and not shortened: send "
        "auto or detailed",
    ),
    (
        {"reasoning": {"generate_summary": "concise"}},
        "unsupported_parameter",
        "reasoning.generate_summary",
        "`reasoning.generate_summary` is not supported: the reasoning is shown as it is, and not "
        "shortened: send auto or detailed",
    ),
    (
        {"reasoning": {"exclude": True}},
        "unsupported_parameter",
        "reasoning.exclude",
        "`reasoning.exclude` is not supported: leave it out",
    ),
    (
        {"reasoning": {"effort": "low"}, "reasoning_effort": "high"},
        "invalid_value",
        "reasoning_effort",
        "`reasoning_effort` says something else than another field about reasoning",
    ),
    (
        {"enable_thinking": True, "reasoning_effort": "none"},
        "invalid_value",
        "reasoning_effort",
        "reasoning is switched on and off at once",
    ),
    (
        {"reasoning": {"enabled": True}, "enable_thinking": False},
        "invalid_value",
        "reasoning.enabled",
        "reasoning is switched on and off at once",
    ),
    (
        {"thinking_budget": 5, "reasoning": {"max_tokens": 6}},
        "invalid_value",
        "thinking_budget",
        "`thinking_budget` says something else than another field about reasoning",
    ),
    (
        {"thinking_budget": 0},
        "invalid_value",
        "thinking_budget",
        "`thinking_budget`: input should be greater than or equal to 1",
    ),
    (
        {"reasoning": {"max_tokens": 0}},
        "invalid_value",
        "reasoning.max_tokens",
        "`reasoning.max_tokens`: input should be greater than or equal to 1",
    ),
    (
        {"verbosity": "low"},
        "unsupported_parameter",
        "verbosity",
        "`verbosity` is not supported: put it into the instructions",
    ),
    (
        {"retrieval": {"vector_store_ids": ["vs_1"]}, "server_tools": {"names": ["a"]}, "store": True},
        "unsupported_parameter",
        "store",
        "`store` does not go with `retrieval`: leave it out",
    ),
    (
        {"server_tools": {"names": ["a"]}, "store": False},
        "unsupported_parameter",
        "store",
        "`store` does not go with `server_tools`: leave it out",
    ),
    (
        {"server_tools": {"names": ["a"]}, "stream": True, "logprobs": True},
        "unsupported_parameter",
        "logprobs",
        "`logprobs` does not go with a stream of `server_tools`: leave one of them out",
    ),
    (
        {"functions": [{"name": "f"}]},
        "unsupported_parameter",
        "functions",
        "`functions` is not supported: it is deprecated, give `tools` instead",
    ),
    ({"modalities": ["audio"]}, "unsupported_parameter", "modalities", "`modalities` is not supported: leave it out"),
    (
        {"web_search_options": {}},
        "unsupported_parameter",
        "web_search_options",
        f"`web_search_options` is not supported: {INSTEAD['web_search_options']}",
    ),
    (
        {"Max-Tokens": 1},
        "unsupported_parameter",
        "Max-Tokens",
        "unknown field `Max-Tokens`: did you mean `max_tokens`?",
    ),
]


def test_an_error_names_the_field_of_the_chat(subtests: pytest.Subtests) -> None:
    refuse_all(chat_job, REFUSED_CHATS, subtests)

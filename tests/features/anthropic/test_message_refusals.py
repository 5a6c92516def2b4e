"""Requests of the Messages API that become no job: the error says which field is wrong, and how. No server."""

from typing import Any

import pytest

from headrace.features.anthropic.message_request import as_sent
from headrace.features.openai.foreign_fields import INSTEAD_OF_FILES
from headrace.store.errors import InvalidRequest
from tests.features.anthropic.message_requests import RESULT, TEXT, TOOL, USE, message_job, schema, turns
from tests.producer_api.request_outcomes import Refused, refusal_of
from tests.refusals import Naming

REFUSED: Refused = [
    (turns("", []), "invalid_value", "messages[0].content", "empty"),
    (turns([TEXT], "x"), "unsupported_parameter", "messages[1]", "assistant"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_value", "messages[0].role", "assistant", "system"),
    (
        {"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": ""}]},
        "invalid_value",
        "messages[1].content",
        "empty",
    ),
    (
        {"messages": [{"role": "user", "content": "hi"}, {"role": "system", "content": [USE]}]},
        "unsupported_parameter",
        "messages[1].content[0].type",
        "tool_use",
        "system",
    ),
    (turns([], role="assistant"), "invalid_value", "messages", "empty"),
    (turns([USE]), "unsupported_parameter", "messages[0].content[0].type", "tool_use"),
    (turns("hi", [RESULT]), "unsupported_parameter", "messages[1].content[0].type", "tool_result"),
    (
        turns("hi", [{"type": "image", "source": {"type": "url", "url": "x"}}]),
        "unsupported_parameter",
        "messages[1].content[0].type",
        "image",
    ),
    (turns([{"type": "text"}]), "invalid_value", "messages[0].content[0].text", "required"),
    (
        turns([{"type": "document"}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "document",
        INSTEAD_OF_FILES,
    ),
    (
        turns([{"type": "image", "source": {"type": "base64", "data": "x"}}]),
        "invalid_value",
        "messages[0].content[0].source",
        "media_type",
        "data",
        "url",
        "file_id",
    ),
    (turns("hi", [{**USE, "id": None}]), "invalid_value", "messages[1].content[0].id", "required"),
    (turns("hi", [{**USE, "name": None}]), "invalid_value", "messages[1].content[0].name", "required"),
    (turns("hi", [{**USE, "input": None}]), "invalid_value", "messages[1].content[0].input", "required"),
    (
        turns("hi", [USE], [{**RESULT, "tool_use_id": None}]),
        "invalid_value",
        "messages[2].content[0].tool_use_id",
        "required",
    ),
    (
        turns("hi", [USE], [{**RESULT, "content": {"a": 1}}]),
        "invalid_value",
        "messages[2].content[0].content",
        "text blocks",
    ),
    (
        turns("hi", [USE], [{**RESULT, "content": [TEXT, {"type": "image"}]}]),
        "unsupported_parameter",
        "messages[2].content[0].content[1].type",
        "image",
    ),
    (turns("hi", [USE], [TEXT, RESULT]), "invalid_value", "messages[2].content[1]", "before the text"),
    (turns("hi", [USE], "so?"), "invalid_value", "messages[1]", "tool_use", "tool_result", "t1"),
    (
        turns("hi", [USE], [RESULT, {**RESULT, "tool_use_id": "t2"}]),
        "invalid_value",
        "messages[2].content[1]",
        "tool_use",
        "tool_use_id",
    ),
    (
        turns("hi", [USE, {**USE, "id": "t2"}], [RESULT]),
        "invalid_value",
        "messages[1]",
        "tool_use",
        "tool_result",
        "t2",
    ),
    (turns("hi", [USE, USE], [RESULT]), "invalid_value", "messages[1]", "two `tool_use`"),
    (turns([RESULT]), "invalid_value", "messages[0].content[0]", "tool_use", "tool_use_id"),
    ({"system": [TEXT, {"type": "image"}]}, "unsupported_parameter", "system[1].type", "image"),
    ({"tools": [TOOL, {**TOOL, "type": "bash_20250124"}]}, "unsupported_parameter", "tools[1].type", "bash_20250124"),
    ({"tools": [{**TOOL, "name": None}]}, "invalid_value", "tools[0].name", "required"),
    ({"tools": [{**TOOL, "input_schema": None}]}, "invalid_value", "tools[0].input_schema", "required"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "invalid_value", "tools[0].name", "^[a-zA-Z0-9_-]{1,64}$"),
    (
        {"tools": [{**TOOL, "input_schema": {"type": "string"}}]},
        "invalid_value",
        "tools[0].input_schema",
        '"type": "object"',
    ),
    ({"tools": [{**TOOL, "input_examples": [{}]}]}, "unsupported_parameter", "tools[0].input_examples"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "unsupported_parameter", "tools[0].defer_loading"),
    ({"tools": [TOOL, TOOL]}, "invalid_value", "tools", "named f"),
    ({"tool_choice": {"type": "any"}}, "invalid_value", "tool_choice", "tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "invalid_value", "tool_choice.type", "auto, any, tool"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "invalid_value", "tool_choice.name", "required"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "invalid_value", "tool_choice", "named g"),
    ({"thinking": {"type": "enabled"}}, "invalid_value", "thinking.budget_tokens", "required"),
    ({"thinking": {"type": "enabled", "budget_tokens": 99}}, "invalid_value", "thinking.budget_tokens", "max_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "invalid_value", "thinking.budget_tokens", "to 1"),
    ({"thinking": {"type": "deep"}}, "unsupported_parameter", "thinking.type", "deep"),
    ({"thinking": {"type": "adaptive", "display": "omitted"}}, "unsupported_parameter", "thinking.display"),
    (schema({}, "json"), "unsupported_parameter", "output_config.format.type", "json"),
    (schema(None), "invalid_value", "output_config.format.schema", "required"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens", "echo"),
    ({"temperature": 9.5}, "invalid_value", "temperature", "to 2"),
    ({"stop_sequences": ["a", ""]}, "invalid_value", "stop_sequences[1]", "1 character"),
    ({"metadata": {"user_id": "x" * 600}}, "invalid_value", "metadata.user_id", "most 512"),
    ({"job": {"priority": 11}}, "invalid_value", "job.priority", "to 9"),
    ({"stop": ["END"]}, "unsupported_parameter", "stop", "stop_sequences"),
    ({"stop_words": ["END"]}, "unsupported_parameter", "stop_words", "stop_sequences"),
    ({"max_completion_tokens": 5}, "unsupported_parameter", "max_completion_tokens", "max_tokens"),
    ({"max_new_tokens": 5}, "unsupported_parameter", "max_new_tokens", "max_tokens"),
    ({"lora": "x"}, "unsupported_parameter", "lora", "model"),
    ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format", "output_config.format"),
    ({"guided_json": {"a": 1}}, "unsupported_parameter", "guided_json", "output_config.format"),
    ({"json_schema": {"a": 1}}, "unsupported_parameter", "json_schema", "output_config.format"),
    ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions", "tools"),
    ({"mcp_servers": [{"url": "x"}]}, "unsupported_parameter", "mcp_servers", "server_tools"),
    ({"reasoning_effort": "low"}, "unsupported_parameter", "reasoning_effort", "output_config.effort"),
    ({"enable_thinking": True}, "unsupported_parameter", "enable_thinking", "`thinking`"),
    ({"n": 2}, "unsupported_parameter", "n", "one request"),
    ({"container": "c"}, "unsupported_parameter", "container"),
    ({"min_p": 0.1}, "unsupported_parameter", "min_p"),
    (
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        "unsupported_parameter",
        "context_management",
    ),
    ({"max_token": 3}, "unsupported_parameter", "max_token", "max_tokens"),
]


def test_an_error_names_the_field_of_the_request(subtests: pytest.Subtests) -> None:
    for changes, code, param, *named in REFUSED:
        with subtests.test(f"{code} {param}", named=named):
            assert refusal_of(message_job, changes) == (code, param, Naming(*named))


OTHERS: dict[str, tuple[Any, ...]] = {
    "guided_json": ({"a": 1}, None, "output_config.format"),
    "guided_choice": (["a"], None, "output_config.format"),
    "structured_outputs": ({"regex": "a"}, None, "output_config.format"),
    "output_format": ({"type": "json_schema"}, None, "output_config.format"),
    "response_format": ({"type": "json_object"}, {"type": "text"}, "output_config.format"),
    "json_schema": ({"a": 1}, {}, "output_config.format"),
    "min_p": (0.1, 0),
    "min_tokens": (1, 0),
    "stop_token_ids": ([1], []),
    "logit_bias": ({"7": 1}, {}),
    "ignore_eos": (True, False),
    "container": ("c", None),
    "context_management": (
        {"edits": [{"type": "clear_thinking_20251015"}, {"type": "clear_tool_uses_20250919"}]},
        {"edits": [{"type": "clear_thinking_20251015"}]},
    ),
    "thread": ({"type": "create"}, None, "all of its messages"),
    "fallbacks": ([{"model": "m"}], "default", "another `model`"),
    "compaction": ({"type": "summarize"}, None, "truncation"),
    "speed": ("fast", "standard"),
    "mcp_servers": ([{}], [], "server_tools"),
    "stop": (["x"], [], "stop_sequences"),
    "stop_words": (["x"], [], "stop_sequences"),
    "max_completion_tokens": (1, None, "max_tokens"),
    "max_tokens_to_sample": (1, None, "`max_tokens`"),
    "max_new_tokens": (1, None, "max_tokens"),
    "lora": ("x", "", "model"),
    "functions": ([{}], [], "tools"),
    "reasoning_effort": ("low", "none", "output_config.effort"),
    "reasoning": ({"effort": "low"}, {}, "thinking"),
    "enable_thinking": (True, False, "`thinking`"),
    "thinking_budget": (5, 0, "`thinking`"),
    "n": (2, 1, "one request"),
}


@pytest.mark.parametrize("field", OTHERS)
def test_a_field_of_another_api_is_refused_unless_it_means_nothing(field: str) -> None:
    wrong, harmless, *named = OTHERS[field]
    assert refusal_of(message_job, {field: wrong}) == ("unsupported_parameter", field, Naming(*named))
    assert message_job({field: harmless}) == message_job({})


def test_a_management_of_the_context_without_edits_means_nothing() -> None:
    for harmless in ({}, {"edits": None}, {"edits": []}):
        assert message_job({"context_management": harmless}) == message_job({})


def test_an_error_of_the_job_names_the_field_that_was_sent() -> None:
    names = {
        "sampling.stop[2]": "stop_sequences[2]",
        "sampling.temperature": "temperature",
        "sampling.grammar.text": "output_config.format",
        "sampling": "max_tokens",
        "user": "metadata.user_id",
        "input": "messages",
        "input.token_ids": "messages",
        "input.messages[0].content": "messages[0].content",
        "input.reasoning": "thinking",
        "input.reasoning.effort": "thinking.type",
        "input.reasoning.max_tokens": "thinking.budget_tokens",
        "input.parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "input.template.variables.city": "prompt.variables.city",
        "input.tools[0].function.parameters": "tools[0].input_schema",
        "input.tools[1].function.name": "tools[1].name",
        "webhook.url": "job.webhook.url",
    }
    for param, name in names.items():
        error = as_sent(InvalidRequest(f"`{param}` is wrong", param=param))
        assert (error.param, error.message) == (name, f"`{name}` is wrong")
    assert as_sent(InvalidRequest("all wrong")).param is None

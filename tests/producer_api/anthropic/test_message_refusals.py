"""Requests of the Messages API that become no job: the error says which field is wrong, and how. No server."""

from typing import Any

import pytest

from headrace.producer_api.anthropic.message_request import as_sent
from headrace.producer_api.openai.foreign_fields import INSTEAD_OF_FILES
from headrace.store.errors import InvalidRequest
from tests.producer_api.anthropic.message_requests import RESULT, TEXT, TOOL, USE, message_job, schema, turns
from tests.producer_api.request_outcomes import refusal_of

REFUSED: list[tuple[dict[str, Any], str, str | None, str]] = [
    (turns("", []), "invalid_value", "messages[0].content", "`messages[0].content` is empty: a turn has a text"),
    (
        turns([TEXT], "x"),
        "unsupported_parameter",
        "messages[1]",
        "`messages[1]` is the assistant's: an answer that continues its last turn is not supported, end "
        "with a user's turn",
    ),
    (
        {"messages": [{"role": "wizard", "content": "x"}]},
        "invalid_value",
        "messages[0].role",
        "`messages[0].role` is one of user, assistant and system",
    ),
    (
        {"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": ""}]},
        "invalid_value",
        "messages[1].content",
        "`messages[1].content` is empty: a turn has a text",
    ),
    (
        {"messages": [{"role": "user", "content": "hi"}, {"role": "system", "content": [USE]}]},
        "unsupported_parameter",
        "messages[1].content[0].type",
        "`messages[1].content[0].type` 'tool_use' is not supported: blocks of the system are text",
    ),
    (turns([], role="assistant"), "invalid_value", "messages", "`messages` are empty: send a user's turn with a text"),
    (
        turns([USE]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "`messages[0].content[0].type` 'tool_use' is not supported: blocks of the user are text, image and tool_result",
    ),
    (
        turns("hi", [RESULT]),
        "unsupported_parameter",
        "messages[1].content[0].type",
        "`messages[1].content[0].type` 'tool_result' is not supported: blocks of the assistant are "
        "text, thinking and tool_use",
    ),
    (
        turns("hi", [{"type": "image", "source": {"type": "url", "url": "x"}}]),
        "unsupported_parameter",
        "messages[1].content[0].type",
        "`messages[1].content[0].type` 'image' is not supported: blocks of the assistant are text, "
        "thinking and tool_use; images stand in messages of the user",
    ),
    (
        turns([{"type": "text"}]),
        "invalid_value",
        "messages[0].content[0].text",
        "`messages[0].content[0].text` is required",
    ),
    (
        turns([{"type": "document"}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "`messages[0].content[0].type` 'document' is not supported: blocks of the user are text, image and "
        f"tool_result; {INSTEAD_OF_FILES}",
    ),
    (
        turns([{"type": "image", "source": {"type": "base64", "data": "x"}}]),
        "invalid_value",
        "messages[0].content[0].source",
        "`messages[0].content[0].source` is not of a known type: base64 with `media_type` and `data`, "
        "url with `url`, or file with `file_id`",
    ),
    (
        turns("hi", [{**USE, "id": None}]),
        "invalid_value",
        "messages[1].content[0].id",
        "`messages[1].content[0].id` is required",
    ),
    (
        turns("hi", [{**USE, "name": None}]),
        "invalid_value",
        "messages[1].content[0].name",
        "`messages[1].content[0].name` is required",
    ),
    (
        turns("hi", [{**USE, "input": None}]),
        "invalid_value",
        "messages[1].content[0].input",
        "`messages[1].content[0].input` is required",
    ),
    (
        turns("hi", [USE], [{**RESULT, "tool_use_id": None}]),
        "invalid_value",
        "messages[2].content[0].tool_use_id",
        "`messages[2].content[0].tool_use_id` is required",
    ),
    (
        turns("hi", [USE], [{**RESULT, "content": {"a": 1}}]),
        "invalid_value",
        "messages[2].content[0].content",
        "`messages[2].content[0].content` is a text, or text blocks",
    ),
    (
        turns("hi", [USE], [{**RESULT, "content": [TEXT, {"type": "image"}]}]),
        "unsupported_parameter",
        "messages[2].content[0].content[1].type",
        "`messages[2].content[0].content[1].type` 'image' is not supported: only text blocks are; "
        "images stand in messages of the user",
    ),
    (
        turns("hi", [USE], [TEXT, RESULT]),
        "invalid_value",
        "messages[2].content[1]",
        "`messages[2].content[1]`: results of tools stand before the text of a turn",
    ),
    (
        turns("hi", [USE], "so?"),
        "invalid_value",
        "messages[1]",
        "`messages[1]`: the `tool_use` 't1' needs a `tool_result` block at the start of the next turn",
    ),
    (
        turns("hi", [USE], [RESULT, {**RESULT, "tool_use_id": "t2"}]),
        "invalid_value",
        "messages[2].content[1]",
        "`messages[2].content[1]`: the turn before it has no `tool_use` block with this `tool_use_id`",
    ),
    (
        turns("hi", [USE, {**USE, "id": "t2"}], [RESULT]),
        "invalid_value",
        "messages[1]",
        "`messages[1]`: the `tool_use` 't2' needs a `tool_result` block at the start of the next turn",
    ),
    (
        turns("hi", [USE, USE], [RESULT]),
        "invalid_value",
        "messages[1]",
        "`messages[1]` has two `tool_use` blocks of one id",
    ),
    (
        turns([RESULT]),
        "invalid_value",
        "messages[0].content[0]",
        "`messages[0].content[0]`: the turn before it has no `tool_use` block with this `tool_use_id`",
    ),
    (
        {"system": [TEXT, {"type": "image"}]},
        "unsupported_parameter",
        "system[1].type",
        "`system[1].type` 'image' is not supported: only text blocks are; images stand in messages of the user",
    ),
    (
        {"tools": [TOOL, {**TOOL, "type": "bash_20250124"}]},
        "unsupported_parameter",
        "tools[1].type",
        "`tools[1].type` 'bash_20250124' is not supported: only custom tools are, which the caller runs",
    ),
    ({"tools": [{**TOOL, "name": None}]}, "invalid_value", "tools[0].name", "`tools[0].name` is required"),
    (
        {"tools": [{**TOOL, "input_schema": None}]},
        "invalid_value",
        "tools[0].input_schema",
        "`tools[0].input_schema` is required",
    ),
    (
        {"tools": [{**TOOL, "name": "a b"}]},
        "invalid_value",
        "tools[0].name",
        "`tools[0].name`: string should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
    ),
    (
        {"tools": [{**TOOL, "input_schema": {"type": "string"}}]},
        "invalid_value",
        "tools[0].input_schema",
        '`tools[0].input_schema`: the arguments of a function are a JSON object: its schema has `"type": "object"`',
    ),
    (
        {"tools": [{**TOOL, "input_examples": [{}]}]},
        "unsupported_parameter",
        "tools[0].input_examples",
        "`tools[0].input_examples` is not supported: leave it out",
    ),
    (
        {"tools": [{**TOOL, "defer_loading": True}]},
        "unsupported_parameter",
        "tools[0].defer_loading",
        "`tools[0].defer_loading` is not supported: leave it out",
    ),
    (
        {"tools": [TOOL, TOOL]},
        "invalid_value",
        "tools",
        "`tools`: two functions are named f: each needs a name of its own",
    ),
    ({"tool_choice": {"type": "any"}}, "invalid_value", "tool_choice", "`tool_choice` needs `tools`"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "some"}},
        "invalid_value",
        "tool_choice.type",
        "`tool_choice.type` is one of auto, any, tool and none",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "tool"}},
        "invalid_value",
        "tool_choice.name",
        "`tool_choice.name` is required: the name of a tool",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}},
        "invalid_value",
        "tool_choice",
        "`tool_choice`: no tool is named g",
    ),
    (
        {"thinking": {"type": "enabled"}},
        "invalid_value",
        "thinking.budget_tokens",
        "`thinking.budget_tokens` is required",
    ),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 99}},
        "invalid_value",
        "thinking.budget_tokens",
        "`thinking.budget_tokens` is 99, and leaves nothing of `max_tokens` 99 for the answer",
    ),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 0}},
        "invalid_value",
        "thinking.budget_tokens",
        "`thinking.budget_tokens`: input should be greater than or equal to 1",
    ),
    (
        {"thinking": {"type": "deep"}},
        "unsupported_parameter",
        "thinking.type",
        "`thinking.type` 'deep' is not supported: enabled, disabled and adaptive are",
    ),
    (
        {"thinking": {"type": "adaptive", "display": "omitted"}},
        "unsupported_parameter",
        "thinking.display",
        "`thinking.display` is not supported: leave it out",
    ),
    (
        schema({}, "json"),
        "unsupported_parameter",
        "output_config.format.type",
        "`output_config.format.type` 'json' is not supported: send json_schema",
    ),
    (schema(None), "invalid_value", "output_config.format.schema", "`output_config.format.schema` is required"),
    (
        {"max_tokens": 0},
        "invalid_value",
        "max_tokens",
        "`max_tokens`: it should be greater than or equal to 1: 0 is for `echo`",
    ),
    ({"temperature": 9.5}, "invalid_value", "temperature", "`temperature`: input should be less than or equal to 2"),
    (
        {"stop_sequences": ["a", ""]},
        "invalid_value",
        "stop_sequences[1]",
        "`stop_sequences[1]`: string should have at least 1 character",
    ),
    (
        {"metadata": {"user_id": "x" * 600}},
        "invalid_value",
        "metadata.user_id",
        "`metadata.user_id`: string should have at most 512 characters",
    ),
    (
        {"job": {"priority": 11}},
        "invalid_value",
        "job.priority",
        "`job.priority`: input should be less than or equal to 9",
    ),
    ({"stop": ["END"]}, "unsupported_parameter", "stop", "`stop` is not supported: send `stop_sequences`"),
    (
        {"stop_words": ["END"]},
        "unsupported_parameter",
        "stop_words",
        "`stop_words` is not supported: send `stop_sequences`",
    ),
    (
        {"max_completion_tokens": 5},
        "unsupported_parameter",
        "max_completion_tokens",
        "`max_completion_tokens` is not supported: send `max_tokens`",
    ),
    (
        {"max_new_tokens": 5},
        "unsupported_parameter",
        "max_new_tokens",
        "`max_new_tokens` is not supported: send `max_tokens`",
    ),
    ({"lora": "x"}, "unsupported_parameter", "lora", "`lora` is not supported: name a `model`"),
    (
        {"response_format": {"type": "json_object"}},
        "unsupported_parameter",
        "response_format",
        "`response_format` is not supported: send `output_config.format`",
    ),
    (
        {"guided_json": {"a": 1}},
        "unsupported_parameter",
        "guided_json",
        "`guided_json` is not supported: send `output_config.format`",
    ),
    (
        {"json_schema": {"a": 1}},
        "unsupported_parameter",
        "json_schema",
        "`json_schema` is not supported: send `output_config.format`",
    ),
    (
        {"functions": [{"name": "f"}]},
        "unsupported_parameter",
        "functions",
        "`functions` is not supported: send `tools`",
    ),
    (
        {"mcp_servers": [{"url": "x"}]},
        "unsupported_parameter",
        "mcp_servers",
        "`mcp_servers` is not supported: register the servers, and name them in `server_tools`",
    ),
    (
        {"reasoning_effort": "low"},
        "unsupported_parameter",
        "reasoning_effort",
        "`reasoning_effort` is not supported: send `output_config.effort`",
    ),
    (
        {"enable_thinking": True},
        "unsupported_parameter",
        "enable_thinking",
        "`enable_thinking` is not supported: send `thinking`",
    ),
    ({"n": 2}, "unsupported_parameter", "n", "`n` is not supported: send one request for each answer"),
    ({"container": "c"}, "unsupported_parameter", "container", "`container` is not supported: leave it out"),
    ({"min_p": 0.1}, "unsupported_parameter", "min_p", "`min_p` is not supported: leave it out"),
    (
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        "unsupported_parameter",
        "context_management",
        "`context_management` is not supported: leave it out",
    ),
    ({"max_token": 3}, "unsupported_parameter", "max_token", "unknown field `max_token`: did you mean `max_tokens`?"),
]


def test_an_error_names_the_field_of_the_request(subtests: pytest.Subtests) -> None:
    for changes, code, param, message in REFUSED:
        with subtests.test(message):
            assert refusal_of(message_job, changes) == (code, param, message)


OTHERS: dict[str, tuple[Any, Any, str]] = {
    "guided_json": ({"a": 1}, None, "send `output_config.format`"),
    "guided_choice": (["a"], None, "send `output_config.format`"),
    "structured_outputs": ({"regex": "a"}, None, "send `output_config.format`"),
    "output_format": ({"type": "json_schema"}, None, "send `output_config.format`"),
    "response_format": ({"type": "json_object"}, {"type": "text"}, "send `output_config.format`"),
    "json_schema": ({"a": 1}, {}, "send `output_config.format`"),
    "min_p": (0.1, 0, "leave it out"),
    "min_tokens": (1, 0, "leave it out"),
    "stop_token_ids": ([1], [], "leave it out"),
    "logit_bias": ({"7": 1}, {}, "leave it out"),
    "ignore_eos": (True, False, "leave it out"),
    "container": ("c", None, "leave it out"),
    "context_management": (
        {"edits": [{"type": "clear_thinking_20251015"}, {"type": "clear_tool_uses_20250919"}]},
        {"edits": [{"type": "clear_thinking_20251015"}]},
        "leave it out",
    ),
    "thread": ({"type": "create"}, None, "no conversation is held here, send all of its messages"),
    "fallbacks": ([{"model": "m"}], "default", "send another request with another `model`"),
    "compaction": ({"type": "summarize"}, None, "send the messages that should stay, or `truncation`"),
    "speed": ("fast", "standard", "leave it out"),
    "mcp_servers": ([{}], [], "register the servers, and name them in `server_tools`"),
    "stop": (["x"], [], "send `stop_sequences`"),
    "stop_words": (["x"], [], "send `stop_sequences`"),
    "max_completion_tokens": (1, None, "send `max_tokens`"),
    "max_tokens_to_sample": (1, None, "send `max_tokens`"),
    "max_new_tokens": (1, None, "send `max_tokens`"),
    "lora": ("x", "", "name a `model`"),
    "functions": ([{}], [], "send `tools`"),
    "reasoning_effort": ("low", "none", "send `output_config.effort`"),
    "reasoning": ({"effort": "low"}, {}, "send `thinking`"),
    "enable_thinking": (True, False, "send `thinking`"),
    "thinking_budget": (5, 0, "send `thinking`"),
    "n": (2, 1, "send one request for each answer"),
}


@pytest.mark.parametrize("field", OTHERS)
def test_a_field_of_another_api_is_refused_unless_it_means_nothing(field: str) -> None:
    wrong, harmless, advice = OTHERS[field]
    message = f"`{field}` is not supported: {advice}"
    assert refusal_of(message_job, {field: wrong}) == ("unsupported_parameter", field, message)
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

"""The jobs that requests of the Messages API become, whole, and what is said of those that become none. No server."""

from typing import Any

import pytest

from producer_api.anthropic.message_request import CountTokensRequest, MessageRequest, to_job
from store.errors import InvalidRequest

ASKED: dict[str, Any] = {"model": "m", "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"type": "text", "text": "x"}
USE: dict[str, Any] = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "t1", "content": "1"}
TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
FUNCTION: dict[str, Any] = {"function": {"name": "f", "parameters": {"type": "object"}}}


def message_job(changes: dict[str, Any]) -> Any:
    return to_job(MessageRequest.model_validate(ASKED | changes))


def turns(*said: Any, role: str = "user") -> dict[str, Any]:
    """Messages of the user and the assistant, one after the other."""
    roles = (role, "user" if role == "assistant" else "assistant")
    return {"messages": [{"role": roles[index % 2], "content": one} for index, one in enumerate(said)]}


def schema(schema: Any, kind: str = "json_schema") -> dict[str, Any]:
    return {"output_config": {"format": {"type": kind, "schema": schema}}}


def given(job: Any) -> dict[str, Any]:
    """The fields that the request has set."""
    made: dict[str, Any] = job.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return made


PLAIN: dict[str, Any] = {
    "model": "m",
    "input": {
        "messages": [{"role": "user", "content": "hi"}],
        "reasoning": {"effort": "minimal", "optional": True},
    },
    "sampling": {"max_tokens": 99},
    "service_class": "interactive",
    "truncation": "disabled",
}


PICTURE = {"type": "base64", "media_type": "image/png", "data": "QUJD"}
LAST_TEXT = {"type": "text", "text": "y"}
EVERY_TURN: list[dict[str, Any]] = [
    {"role": "user", "content": [TEXT, {"type": "image", "source": PICTURE}, LAST_TEXT]},
    {
        "role": "user",
        "content": [
            {"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}},
            {"type": "text", "text": "z"},
            {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        ],
    },
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm"},
            {"type": "redacted_thinking", "data": "z"},
            {"type": "mcp_tool_use", "id": "m1", "name": "f", "input": {}},
            {"type": "thinking", "thinking": "so"},
            {"type": "text", "text": "look"},
            {**USE, "input": {"q": "ö"}},
            {**USE, "id": "t2"},
        ],
    },
    {
        "role": "user",
        "content": [
            {**RESULT, "tool_use_id": "t2", "content": "ERROR x", "is_error": True},
            {**RESULT, "content": [TEXT, LAST_TEXT], "is_error": True},
            {"type": "text", "text": "and?"},
        ],
    },
    {"role": "assistant", "content": []},
    {"role": "user", "content": "now"},
    {"role": "system", "content": "Loud."},
    {"role": "user", "content": "last"},
]


def test_every_turn_has_its_place_in_the_job() -> None:
    made = message_job({"system": [TEXT, LAST_TEXT], "messages": EVERY_TURN})
    assert given(made)["input"]["messages"] == [
        {"role": "system", "content": "x\ny"},
        {
            "role": "user",
            "content": "x\ny\nz",
            "images": [
                {"url": "data:image/png;base64,QUJD", "at": 1},
                {"url": "https://x.example/a.png", "at": 4},
                {"file_id": "file_1", "at": 5},
            ],
        },
        {
            "role": "assistant",
            "content": "look",
            "reasoning_content": "hm\nso",
            "tool_calls": [
                {"id": "t1", "function": {"name": "f", "arguments": '{"q": "ö"}'}},
                {"id": "t2", "function": {"name": "f", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t2", "content": "ERROR x"},
        {"role": "tool", "tool_call_id": "t1", "content": "Error: x\ny"},
        {"role": "user", "content": "and?\nnow"},
        {"role": "system", "content": "Loud."},
        {"role": "user", "content": "last"},
    ]


def test_turns_of_the_assistant_in_a_row_are_one() -> None:
    one = [{"type": "thinking", "thinking": "hm"}, TEXT, USE]
    two = [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "y"}, {**USE, "id": "t2"}]
    asked = [{"role": "assistant", "content": one}, {"role": "assistant", "content": two}]
    asked.append({"role": "user", "content": [RESULT, {**RESULT, "tool_use_id": "t2"}]})
    (said, *_) = given(message_job({"messages": asked}))["input"]["messages"]
    assert said == {
        "role": "assistant",
        "content": "x\ny",
        "reasoning_content": "hm",
        "tool_calls": [{"id": name, "function": {"name": "f", "arguments": "{}"}} for name in ("t1", "t2")],
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"service_tier": "auto", "metadata": {"user_id": ""}, "truncation": "auto"}, {"truncation": "auto"}),
        ({"service_tier": "standard_only", "metadata": {"user_id": "u"}}, {"service_class": "standard", "user": "u"}),
        ({"job": {"priority": 1, "max_attempts": 2}}, {"priority": 1, "max_attempts": 2}),
        (
            {
                "temperature": 0.5,
                "top_p": 0.25,
                "top_k": 3,
                "seed": 1,
                "presence_penalty": 0.1,
                "frequency_penalty": 0.2,
                "repetition_penalty": 1.1,
                "stop_sequences": ["END"],
                **schema({"b": 1, "a": 2}),
            },
            {
                "sampling": {
                    "max_tokens": 99,
                    "temperature": 0.5,
                    "top_p": 0.25,
                    "top_k": 3,
                    "seed": 1,
                    "presence_penalty": 0.1,
                    "frequency_penalty": 0.2,
                    "repetition_penalty": 1.1,
                    "stop": ["END"],
                    "grammar": {"kind": "json_schema", "text": '{"b": 1, "a": 2}'},
                }
            },
        ),
        ({"stop": [], "response_format": {"type": "text"}, "ignore_eos": False, "functions": [], "min_p": 0}, {}),
        ({"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}, "mcp_servers": []}, {}),
    ],
)
def test_a_message_becomes_this_job(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert given(message_job(changes)) == PLAIN | expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"thinking": {"type": "disabled", "display": "summarized"}}, {"effort": "none"}),
        ({"thinking": {"type": "adaptive"}}, {"optional": True}),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, {"effort": "xhigh", "optional": True}),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, {"effort": "low", "optional": True}),
        ({"thinking": {"type": "enabled", "budget_tokens": 98}}, {"max_tokens": 98}),
        ({"output_config": {"effort": "high"}}, {"effort": "minimal", "optional": True}),
    ],
)
def test_thinking_becomes_reasoning(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert given(message_job(changes))["input"]["reasoning"] == expected


NAMED = {"type": "function", "function": {"name": "f"}}
CHOICES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "auto"}, {"tool_choice": "auto"}),
    ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
    ({"type": "none", "disable_parallel_tool_use": False}, {"tool_choice": "none", "parallel_tool_calls": True}),
    ({"type": "tool", "name": "f"}, {"tool_choice": NAMED}),
]


@pytest.mark.parametrize(("choice", "expected"), CHOICES)
def test_a_choice_of_tools_becomes_that_of_a_job(choice: dict[str, Any], expected: dict[str, Any]) -> None:
    made = given(message_job({"tools": [TOOL], "tool_choice": choice}))["input"]
    assert made == {**PLAIN["input"], "tools": [FUNCTION], **expected}


def test_tools_become_functions() -> None:
    beside = {"cache_control": {}, "defer_loading": False, "input_examples": []}
    told = {**TOOL, "type": "custom", "name": "g", "description": "d", "strict": True, **beside}
    made = given(message_job({"tools": [TOOL, told]}))["input"]
    expected = {"name": "g", "description": "d", "strict": True, "parameters": {"type": "object"}}
    assert made["tools"] == [FUNCTION, {"function": expected}]
    assert "tool_choice" not in made
    for choice in ("auto", "none"):
        assert given(message_job({"tools": [], "tool_choice": {"type": choice}})) == PLAIN
    assert message_job({"server_tools": {"names": ["calculator"]}}).server_tools.names == ("calculator",)


def test_the_counted_part_is_a_job_without_limits() -> None:
    asked = {name: value for name, value in ASKED.items() if name != "max_tokens"}
    more = {"thinking": {"type": "enabled", "budget_tokens": 5000}, "prompt": {"id": "p"}, "temperature": 0.5}
    assert given(to_job(CountTokensRequest.model_validate(asked | more))) == {
        "model": "m",
        "input": {
            "template": {"id": "p"},
            "messages": [{"role": "user", "content": "hi"}],
            "reasoning": {"max_tokens": 5000},
        },
        "sampling": {},
    }


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
        "unsupported_parameter",
        "messages[0].content[0].type",
        "`messages[0].content[0].type` 'text' is not supported: blocks of the user are text, image and tool_result",
    ),
    (
        turns([{"type": "document"}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "`messages[0].content[0].type` 'document' is not supported: blocks of the user are text, image and tool_result",
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
            with pytest.raises(InvalidRequest) as raised:
                message_job(changes)
            assert (raised.value.code, raised.value.param, raised.value.message) == (code, param, message)

"""The jobs that requests of the Messages API become, whole. No server."""

from typing import Any

import pytest

from headrace.features.anthropic.message_request import CountTokensRequest, to_job
from tests.features.anthropic.message_requests import ASKED, FUNCTION, RESULT, TEXT, TOOL, USE, message_job, schema
from tests.producer_api.request_outcomes import fields_set

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
    assert fields_set(made)["input"]["messages"] == [
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
    (said, *_) = fields_set(message_job({"messages": asked}))["input"]["messages"]
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
    assert fields_set(message_job(changes)) == PLAIN | expected


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
    assert fields_set(message_job(changes))["input"]["reasoning"] == expected


NAMED = {"type": "function", "function": {"name": "f"}}
CHOICES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "auto"}, {"tool_choice": "auto"}),
    ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
    ({"type": "none", "disable_parallel_tool_use": False}, {"tool_choice": "none", "parallel_tool_calls": True}),
    ({"type": "tool", "name": "f"}, {"tool_choice": NAMED}),
]


@pytest.mark.parametrize(("choice", "expected"), CHOICES)
def test_a_choice_of_tools_becomes_that_of_a_job(choice: dict[str, Any], expected: dict[str, Any]) -> None:
    made = fields_set(message_job({"tools": [TOOL], "tool_choice": choice}))["input"]
    assert made == {**PLAIN["input"], "tools": [FUNCTION], **expected}


def test_tools_become_functions() -> None:
    beside = {"cache_control": {}, "defer_loading": False, "input_examples": []}
    told = {**TOOL, "type": "custom", "name": "g", "description": "d", "strict": True, **beside}
    made = fields_set(message_job({"tools": [TOOL, told]}))["input"]
    expected = {"name": "g", "description": "d", "strict": True, "parameters": {"type": "object"}}
    assert made["tools"] == [FUNCTION, {"function": expected}]
    assert "tool_choice" not in made
    for choice in ("auto", "none"):
        assert fields_set(message_job({"tools": [], "tool_choice": {"type": choice}})) == PLAIN
    assert message_job({"server_tools": {"names": ["calculator"]}}).server_tools.names == ("calculator",)


def test_the_counted_part_is_a_job_without_limits() -> None:
    asked = {name: value for name, value in ASKED.items() if name != "max_tokens"}
    more = {"thinking": {"type": "enabled", "budget_tokens": 5000}, "prompt": {"id": "p"}, "temperature": 0.5}
    assert fields_set(to_job(CountTokensRequest.model_validate(asked | more))) == {
        "model": "m",
        "input": {
            "template": {"id": "p"},
            "messages": [{"role": "user", "content": "hi"}],
            "reasoning": {"max_tokens": 5000},
        },
        "sampling": {},
    }

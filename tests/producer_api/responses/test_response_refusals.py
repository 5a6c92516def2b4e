"""Requests for a response that become no job: the error says which field is wrong, and how. No server."""

from typing import Any

import pytest

from headrace.producer_api.responses.field_names import as_sent
from headrace.producer_api.responses.response_request import ResponseRequest
from headrace.store.errors import InvalidRequest
from tests.producer_api.request_outcomes import refusal_of
from tests.producer_api.responses.response_requests import ASKED, CALL, FUNCTION, MCP, SEARCH, WEB, form, prepared, said

REFUSED: list[tuple[dict[str, Any], str, str | None, str]] = [
    ({"input": None}, "invalid_value", "input", "`input` is required"),
    (
        {"conversation": "conv_1", "store": False},
        "invalid_value",
        "store",
        "a response of a conversation must be stored: leave out `store`",
    ),
    (
        {"stream_options": {}},
        "invalid_value",
        "stream_options",
        "`stream_options` is for streams: set `stream` to true",
    ),
    (
        {"stream": False, "stream_options": {}},
        "invalid_value",
        "stream_options",
        "`stream_options` is for streams: set `stream` to true",
    ),
    (
        {"background": True, "store": False},
        "invalid_value",
        "store",
        "a background response must be stored: leave out `store`",
    ),
    (
        {"reasoning": {"summary": "concise"}},
        "unsupported_parameter",
        "reasoning.summary",
        "`reasoning.summary` is not supported: the reasoning is shown as it is, and not shortened: send "
        "auto or detailed",
    ),
    (
        {"text": {"verbosity": "low"}},
        "unsupported_parameter",
        "text.verbosity",
        "`text.verbosity` is not supported: put it into the instructions",
    ),
    (
        {"max_tokens": 5},
        "unsupported_parameter",
        "max_tokens",
        "`max_tokens` is not supported: send `max_output_tokens`",
    ),
    (
        {"response_format": {"type": "json_object"}},
        "unsupported_parameter",
        "response_format",
        "`response_format` is not supported: send `text.format`",
    ),
    (
        {"json_schema": {"a": 1}},
        "unsupported_parameter",
        "json_schema",
        "`json_schema` is not supported: send `text.format`",
    ),
    (
        {"guided_json": {"a": 1}},
        "unsupported_parameter",
        "guided_json",
        "`guided_json` is not supported: send `text.format` with a schema",
    ),
    (
        {"structured_outputs": {"regex": "a"}},
        "unsupported_parameter",
        "structured_outputs",
        "`structured_outputs` is not supported: send `text.format` with a schema",
    ),
    ({"regex": "a+"}, "unsupported_parameter", "regex", "`regex` is not supported: send `text.format` with a schema"),
    ({"messages": []}, "unsupported_parameter", "messages", "`messages` is not supported: send `input`"),
    (
        {"reasoning_effort": "low"},
        "unsupported_parameter",
        "reasoning_effort",
        "`reasoning_effort` is not supported: send `reasoning.effort`",
    ),
    (
        {"thinking_budget": 4},
        "unsupported_parameter",
        "thinking_budget",
        "`thinking_budget` is not supported: send `reasoning.max_tokens`",
    ),
    (
        {"verbosity": "low"},
        "unsupported_parameter",
        "verbosity",
        "`verbosity` is not supported: put it into the instructions",
    ),
    ({"logprobs": True}, "unsupported_parameter", "logprobs", "`logprobs` is not supported: send `top_logprobs`"),
    (
        {"functions": [{}]},
        "unsupported_parameter",
        "functions",
        "`functions` is not supported: it is deprecated, give `tools` instead",
    ),
    (
        {"function_call": {"name": "f"}},
        "unsupported_parameter",
        "function_call",
        "`function_call` is not supported: it is deprecated, give `tool_choice` and `tools` instead",
    ),
    (
        {"context_management": [{}]},
        "unsupported_parameter",
        "context_management",
        "`context_management` is not supported: leave it out",
    ),
    (
        {"background_options": {"completion_window": "later"}},
        "unsupported_parameter",
        "background_options",
        "`background_options` is not supported: leave it out",
    ),
    (
        {"max_new_tokens": 4},
        "unsupported_parameter",
        "max_new_tokens",
        "`max_new_tokens` is not supported: send `max_output_tokens`",
    ),
    ({"stop_words": ["x"]}, "unsupported_parameter", "stop_words", "`stop_words` is not supported: send `stop`"),
    (
        {"max_output_token": 3},
        "unsupported_parameter",
        "max_output_token",
        "unknown field `max_output_token`: did you mean `max_output_tokens`?",
    ),
    (
        {"max_output_tokens": 0},
        "invalid_value",
        "max_output_tokens",
        "`max_output_tokens`: it should be greater than or equal to 1: 0 is for `echo`",
    ),
    ({"temperature": 2.5}, "invalid_value", "temperature", "`temperature`: input should be less than or equal to 2"),
    (
        {"min_tokens": 3, "text": {"format": {"type": "json_object"}}},
        "invalid_value",
        "min_tokens",
        "`min_tokens`: an answer that follows a grammar ends with it: leave out `min_tokens`",
    ),
    (
        {"job": {"priority": 11}},
        "invalid_value",
        "job.priority",
        "`job.priority`: input should be less than or equal to 9",
    ),
    ({"input": []}, "invalid_value", "input", "`input`: array should have at least 1 item, not 0"),
    (
        {"input": [], "previous_response_id": "resp_1"},
        "invalid_value",
        "input",
        "`input`: array should have at least 1 item, not 0",
    ),
    (
        form(type="xml"),
        "unsupported_parameter",
        "text.format.type",
        "`text.format.type` 'xml' is not supported: text, json_object, json_schema",
    ),
    (form(type="json_schema", name="n"), "invalid_value", "text.format.schema", "`text.format.schema` is required"),
    (
        form(type="json_schema", schema={"a": "x" * 70_000}),
        "invalid_json_schema",
        "text.format.schema",
        "`text.format.schema` has 70009 characters as text, and 1 to 65536 are accepted",
    ),
    (said(role=None), "invalid_value", "input[0].role", "`input[0].role` is required"),
    (
        said(role="narrator"),
        "unsupported_parameter",
        "input[0].role",
        "`input[0].role` 'narrator' is not supported: system, developer, user, assistant",
    ),
    (said(content=None), "invalid_value", "input[0].content", "`input[0].content` is required"),
    (
        said({"type": "input_text", "text": "a"}, {"type": "input_audio"}),
        "unsupported_parameter",
        "input[0].content[1].type",
        "`input[0].content[1].type` 'input_audio' is not supported: text alone",
    ),
    (
        said({"type": "input_text", "text": "a"}, {"type": "input_image", "detail": "low"}),
        "invalid_value",
        "input[0].content[1].image_url",
        "`input[0].content[1].image_url` is required, or a `file_id`",
    ),
    (
        said({"type": "input_image", "file_id": "f"}, {"type": "input_text"}),
        "invalid_value",
        "input[0].content[1].text",
        "`input[0].content[1].text` is required",
    ),
    (
        said({"type": "input_image", "image_url": "https://x.example/a.png"}, role="assistant"),
        "unsupported_parameter",
        "input[0].content[0].type",
        "`input[0].content[0].type` 'input_image' is not supported: text alone; images stand in messages of the user",
    ),
    ({"input": [CALL | {"call_id": None}]}, "invalid_value", "input[0].call_id", "`input[0].call_id` is required"),
    ({"input": [CALL | {"name": None}]}, "invalid_value", "input[0].name", "`input[0].name` is required"),
    (
        {"input": [CALL | {"arguments": None}]},
        "invalid_value",
        "input[0].arguments",
        "`input[0].arguments` is required",
    ),
    (
        {"input": [{"type": "function_call_output", "output": "1"}]},
        "invalid_value",
        "input[0].call_id",
        "`input[0].call_id` is required",
    ),
    (
        {"input": [{"type": "function_call_output", "call_id": "c1"}]},
        "invalid_value",
        "input[0].output",
        "`input[0].output` is required",
    ),
    (
        {"input": [{"type": "mcp_approval_response", "approval_request_id": "a"}]},
        "invalid_value",
        "input[0].approve",
        "`input[0].approve` is required",
    ),
    (
        {"input": [{"type": "mcp_list_tools"}]},
        "invalid_value",
        "input[0].server_label",
        "`input[0].server_label` is required",
    ),
    (
        {"input": [MCP | {"server_label": None}]},
        "invalid_value",
        "input[0].server_label",
        "`input[0].server_label` is required",
    ),
    ({"input": [MCP | {"name": None}]}, "invalid_value", "input[0].name", "`input[0].name` is required"),
    ({"input": [MCP | {"arguments": None}]}, "invalid_value", "input[0].arguments", "`input[0].arguments` is required"),
    (
        {"input": [MCP | {"output": [{"type": "input_image"}]}]},
        "unsupported_parameter",
        "input[0].output[0].type",
        "`input[0].output[0].type` 'input_image' is not supported: text alone; images stand in messages of the user",
    ),
    (
        {"input": [{"type": "computer_call"}]},
        "unsupported_parameter",
        "input[0].type",
        "`input[0].type` 'computer_call' is not supported: message, function_call, "
        "function_call_output, reasoning, file_search_call, mcp_call, mcp_list_tools, mcp_approval_response",
    ),
    (
        {"input": [{"type": "reasoning", "summary": [{"type": "image"}]}]},
        "unsupported_parameter",
        "input[0].summary[0].type",
        "`input[0].summary[0].type` 'image' is not supported: text alone; images stand in messages of the user",
    ),
    (
        {"tools": [WEB]},
        "unsupported_parameter",
        "tools[0].type",
        "`tools[0].type` 'web_search_preview' is not supported: the web is not searched here, it is "
        "left out beside functions and `file_search` only",
    ),
    (
        {"tools": [FUNCTION, {"type": "computer_use"}]},
        "unsupported_parameter",
        "tools[1].type",
        "`tools[1].type` 'computer_use' is not supported: `file_search` and `mcp` are, and functions, "
        "which the caller runs",
    ),
    (
        {"tools": [{"type": "namespace", "name": "sky", "tools": [FUNCTION, WEB]}]},
        "unsupported_parameter",
        "tools[0].tools[1].type",
        "`tools[0].tools[1].type` 'web_search_preview' is not supported: `file_search` and `mcp` are, "
        "and functions, which the caller runs",
    ),
    (
        {"tools": [{"type": "namespace", "tools": [FUNCTION]}]},
        "invalid_value",
        "tools[0].name",
        "`tools[0].name` is required",
    ),
    (
        {"tools": [FUNCTION, FUNCTION]},
        "invalid_value",
        "tools",
        "`tools`: two functions are named f: each needs a name of its own",
    ),
    (
        {"tools": [FUNCTION | {"name": "a b"}]},
        "invalid_value",
        "tools[0].name",
        "`tools[0].name`: string should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
    ),
    (
        {"tools": [FUNCTION], "tool_choice": {"type": "web_search"}},
        "unsupported_parameter",
        "tool_choice",
        "`tool_choice` is a mode or a function: other tools are not supported",
    ),
    (
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}},
        "invalid_value",
        "tool_choice",
        "`tool_choice`: no tool is named g",
    ),
    (
        {"tools": [FUNCTION], "tool_choice": "sometimes"},
        "invalid_value",
        "tool_choice",
        '`tool_choice`: it is one of `none`, `auto`, `required` or `{"type": "function", "function": {"name": ...}}`',
    ),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice", "`tool_choice` needs `tools`"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "invalid_value", "tool_choice", "`tool_choice` needs `tools`"),
    (
        {"tools": [SEARCH, SEARCH]},
        "unsupported_parameter",
        "tools[1]",
        "one `file_search` is supported: name all stores in it",
    ),
    (
        {"tools": [SEARCH, {"type": "namespace", "name": "sky", "tools": [FUNCTION]}]},
        "unsupported_parameter",
        "tools[1]",
        "`file_search` and functions do not go together in one response: send them in two",
    ),
    (
        {"tools": [SEARCH | {"max_num_results": 51}]},
        "invalid_value",
        "tools[0].max_num_results",
        "`max_num_results`: input should be less than or equal to 50",
    ),
    (
        {"tools": [SEARCH | {"more": 1}]},
        "unsupported_parameter",
        "tools[0].more",
        "`more` is not a field that is known here: remove it or correct its name",
    ),
]


def test_an_error_names_the_field_of_the_request(subtests: pytest.Subtests) -> None:
    for changes, code, param, text in REFUSED:
        with subtests.test(text):
            assert refusal_of(prepared, changes) == (code, param, text)


JOB_NAMES = {
    "sampling.max_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "sampling.logprobs": "top_logprobs",
    "sampling": "min_tokens",
    "sampling.temperature": "temperature",
    "sampling.grammar.text": "text.format",
    "input.tool_choice": "tool_choice",
    "input.parallel_tool_calls": "parallel_tool_calls",
    "input.tools[0].function.name": "tools[0].name",
    "input.chat_template_kwargs.a": "chat_template_kwargs.a",
    "input.reasoning.effort": "reasoning.effort",
    "input.messages[1].content": "input",
    "server_tools.max_tool_calls": "max_tool_calls",
    "server_tools.names[0]": "tools",
    "retrieval.filters": "tools.filters",
    "deadline_ms": "job.deadline_ms",
}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, JOB_NAMES),
        ({"input": None, "previous_response_id": "resp_1"}, {"input.messages": "previous_response_id"}),
        ({"input": None, "conversation": "conv_1"}, {"input.messages": "conversation"}),
        ({"tools": [WEB, SEARCH]}, {"retrieval.vector_store_ids[0]": "tools[1].vector_store_ids[0]"}),
        ({"server_tools": {"names": ["calculator"]}}, {"server_tools.names[0]": "server_tools.names[0]"}),
    ],
)
def test_an_error_of_the_job_names_the_field_that_was_sent(changes: dict[str, Any], names: dict[str, str]) -> None:
    request = ResponseRequest.model_validate(ASKED | changes)
    for param, name in names.items():
        error = as_sent(InvalidRequest(f"`{param}` and `retrieval` are wrong", param=param), request)
        assert (error.param, error.message) == (name, f"`{name}` and `file_search` are wrong")
    assert as_sent(InvalidRequest("all wrong"), request).param is None
    told = as_sent(InvalidRequest("`sampling.stop` and `max_tokens` are wrong", param="sampling.stop"), request)
    assert told.message == "`stop` and `max_output_tokens` are wrong"

"""Requests for a response that become no job: the error says which field is wrong, and how. No server."""

from typing import Any

import pytest

from headrace.features.responses.field_names import as_sent
from headrace.features.responses.response_request import ResponseRequest
from headrace.store.errors import InvalidRequest
from tests.features.responses.response_requests import ASKED, CALL, FUNCTION, MCP, SEARCH, WEB, form, prepared, said
from tests.producer_api.request_outcomes import Refused, refusal_of
from tests.refusals import Naming

REFUSED: Refused = [
    ({"input": None}, "invalid_value", "input", "required"),
    ({"conversation": "conv_1", "store": False}, "invalid_value", "store", "conversation"),
    ({"stream_options": {}}, "invalid_value", "stream_options", "`stream`"),
    ({"stream": False, "stream_options": {}}, "invalid_value", "stream_options", "`stream`"),
    ({"background": True, "store": False}, "invalid_value", "store", "background"),
    ({"reasoning": {"summary": "concise"}}, "unsupported_parameter", "reasoning.summary", "auto", "detailed"),
    ({"text": {"verbosity": "low"}}, "unsupported_parameter", "text.verbosity", "instructions"),
    ({"max_tokens": 5}, "unsupported_parameter", "max_tokens", "max_output_tokens"),
    ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format", "text.format"),
    ({"json_schema": {"a": 1}}, "unsupported_parameter", "json_schema", "text.format"),
    ({"guided_json": {"a": 1}}, "unsupported_parameter", "guided_json", "text.format"),
    ({"structured_outputs": {"regex": "a"}}, "unsupported_parameter", "structured_outputs", "text.format"),
    ({"regex": "a+"}, "unsupported_parameter", "regex", "text.format"),
    ({"messages": []}, "unsupported_parameter", "messages", "input"),
    ({"reasoning_effort": "low"}, "unsupported_parameter", "reasoning_effort", "reasoning.effort"),
    ({"thinking_budget": 4}, "unsupported_parameter", "thinking_budget", "reasoning.max_tokens"),
    ({"verbosity": "low"}, "unsupported_parameter", "verbosity", "instructions"),
    ({"logprobs": True}, "unsupported_parameter", "logprobs", "top_logprobs"),
    ({"functions": [{}]}, "unsupported_parameter", "functions", "tools"),
    ({"function_call": {"name": "f"}}, "unsupported_parameter", "function_call", "tool_choice", "tools"),
    ({"context_management": [{}]}, "unsupported_parameter", "context_management"),
    ({"background_options": {"completion_window": "later"}}, "unsupported_parameter", "background_options"),
    ({"max_new_tokens": 4}, "unsupported_parameter", "max_new_tokens", "max_output_tokens"),
    ({"stop_words": ["x"]}, "unsupported_parameter", "stop_words", "`stop`"),
    ({"max_output_token": 3}, "unsupported_parameter", "max_output_token", "max_output_tokens"),
    ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens", "echo", "to 1"),
    ({"temperature": 2.5}, "invalid_value", "temperature", "to 2"),
    ({"min_tokens": 3, "text": {"format": {"type": "json_object"}}}, "invalid_value", "min_tokens", "grammar"),
    ({"job": {"priority": 11}}, "invalid_value", "job.priority", "to 9"),
    ({"input": []}, "invalid_value", "input", "1 item"),
    ({"input": [], "previous_response_id": "resp_1"}, "invalid_value", "input", "1 item"),
    (form(type="xml"), "unsupported_parameter", "text.format.type", "xml"),
    (form(type="json_schema", name="n"), "invalid_value", "text.format.schema", "required"),
    (
        form(type="json_schema", schema={"a": "x" * 70_000}),
        "invalid_json_schema",
        "text.format.schema",
        "has 70009",
        "to 65536",
    ),
    (said(role=None), "invalid_value", "input[0].role", "required"),
    (said(role="narrator"), "unsupported_parameter", "input[0].role", "narrator"),
    (said(content=None), "invalid_value", "input[0].content", "required"),
    (
        said({"type": "input_text", "text": "a"}, {"type": "input_audio"}),
        "unsupported_parameter",
        "input[0].content[1].type",
        "input_audio",
    ),
    (
        said({"type": "input_text", "text": "a"}, {"type": "input_image", "detail": "low"}),
        "invalid_value",
        "input[0].content[1].image_url",
        "file_id",
    ),
    (
        said({"type": "input_image", "file_id": "f"}, {"type": "input_text"}),
        "invalid_value",
        "input[0].content[1].text",
        "required",
    ),
    (
        said({"type": "input_image", "image_url": "https://x.example/a.png"}, role="assistant"),
        "unsupported_parameter",
        "input[0].content[0].type",
        "input_image",
    ),
    ({"input": [CALL | {"call_id": None}]}, "invalid_value", "input[0].call_id", "required"),
    ({"input": [CALL | {"name": None}]}, "invalid_value", "input[0].name", "required"),
    ({"input": [CALL | {"arguments": None}]}, "invalid_value", "input[0].arguments", "required"),
    ({"input": [{"type": "function_call_output", "output": "1"}]}, "invalid_value", "input[0].call_id", "required"),
    ({"input": [{"type": "function_call_output", "call_id": "c1"}]}, "invalid_value", "input[0].output", "required"),
    (
        {"input": [{"type": "mcp_approval_response", "approval_request_id": "a"}]},
        "invalid_value",
        "input[0].approve",
        "required",
    ),
    ({"input": [{"type": "mcp_list_tools"}]}, "invalid_value", "input[0].server_label", "required"),
    ({"input": [MCP | {"server_label": None}]}, "invalid_value", "input[0].server_label", "required"),
    ({"input": [MCP | {"name": None}]}, "invalid_value", "input[0].name", "required"),
    ({"input": [MCP | {"arguments": None}]}, "invalid_value", "input[0].arguments", "required"),
    (
        {"input": [MCP | {"output": [{"type": "input_image"}]}]},
        "unsupported_parameter",
        "input[0].output[0].type",
        "input_image",
    ),
    ({"input": [{"type": "computer_call"}]}, "unsupported_parameter", "input[0].type", "computer_call"),
    (
        {"input": [{"type": "reasoning", "summary": [{"type": "image"}]}]},
        "unsupported_parameter",
        "input[0].summary[0].type",
        "image",
    ),
    ({"tools": [WEB]}, "unsupported_parameter", "tools[0].type", "file_search", "web_search_preview"),
    (
        {"tools": [FUNCTION, {"type": "computer_use"}]},
        "unsupported_parameter",
        "tools[1].type",
        "file_search",
        "mcp",
        "computer_use",
    ),
    (
        {"tools": [{"type": "namespace", "name": "sky", "tools": [FUNCTION, WEB]}]},
        "unsupported_parameter",
        "tools[0].tools[1].type",
        "file_search",
        "mcp",
        "web_search_preview",
    ),
    ({"tools": [{"type": "namespace", "tools": [FUNCTION]}]}, "invalid_value", "tools[0].name", "required"),
    ({"tools": [FUNCTION, FUNCTION]}, "invalid_value", "tools", "named f"),
    ({"tools": [FUNCTION | {"name": "a b"}]}, "invalid_value", "tools[0].name", "^[a-zA-Z0-9_-]{1,64}$"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "web_search"}}, "unsupported_parameter", "tool_choice", "function"),
    (
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}},
        "invalid_value",
        "tool_choice",
        "named g",
    ),
    (
        {"tools": [FUNCTION], "tool_choice": "sometimes"},
        "invalid_value",
        "tool_choice",
        "none",
        "auto",
        "required",
        '{"type": "function", "function": {"name": ...}}',
    ),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice", "tools"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "invalid_value", "tool_choice", "tools"),
    ({"tools": [SEARCH, SEARCH]}, "unsupported_parameter", "tools[1]", "one `file_search`"),
    (
        {"tools": [SEARCH, {"type": "namespace", "name": "sky", "tools": [FUNCTION]}]},
        "unsupported_parameter",
        "tools[1]",
        "functions",
    ),
    (
        {"tools": [SEARCH | {"max_num_results": 51}]},
        "invalid_value",
        "tools[0].max_num_results",
        "`max_num_results`",
        "to 50",
    ),
    ({"tools": [SEARCH | {"more": 1}]}, "unsupported_parameter", "tools[0].more", "`more`"),
]


def test_an_error_names_the_field_of_the_request(subtests: pytest.Subtests) -> None:
    for changes, code, param, *named in REFUSED:
        with subtests.test(f"{code} {param}", named=named):
            assert refusal_of(prepared, changes) == (code, param, Naming(*named))


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

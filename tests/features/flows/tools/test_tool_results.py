"""What an answer of a tool means for the model, for metrics and for the next try: pure values."""

from typing import Any

import pytest

from headrace.features.flows.store.approvals import Verdict
from headrace.features.flows.tools.calculator import compute
from headrace.features.flows.tools.tool_caller import ToolCaller
from headrace.features.flows.tools.tool_definition import HttpTool, McpServer
from headrace.features.flows.tools.tool_results import (
    MOST_SHOWN,
    CallResult,
    ToolOrder,
    ToolResult,
    failed,
    read_mcp_result,
    read_reply,
    refusal_of,
)
from headrace.store.calls.ssrf_guard import GuardedClient, Reply
from headrace.store.payloads.tool_approval import ApprovalState
from headrace.store.settings import Settings
from tests.refusals import Naming

URL = "https://tools.example.com/"


@pytest.mark.parametrize(
    ("result", "name", "is_unavailable"),
    [
        (ToolResult("22", status=200, tries=1), "ok", False),
        (failed("it broke", status=500, tries=1), "error", True),
        (failed("no city", status=404, tries=1), "error", False),
        (failed("no answer", tries=2), "unanswered", True),
        (failed("wrong arguments"), "not_called", False),
        (failed("busy", kept_from=CallResult.BUSY), "busy", False),
        (failed("paused", kept_from=CallResult.PAUSED), "paused", False),
    ],
)
def test_each_result_has_its_name_and_says_if_another_try_may_help(
    result: ToolResult, name: str, is_unavailable: bool
) -> None:
    assert (result.result.value, result.is_unavailable) == (name, is_unavailable)


def test_the_output_of_a_call_has_four_fields() -> None:
    assert failed("it broke", status=500, tries=2).output == {
        "text": "Error: it broke",
        "is_error": True,
        "status": 500,
        "tries": 2,
    }


@pytest.mark.parametrize(
    ("status", "is_tried_again"),
    [(408, True), (409, False), (425, True), (429, True), (501, False), (502, True), (503, True), (504, True)],
)
def test_only_some_statuses_are_tried_again(status: int, is_tried_again: bool) -> None:
    assert read_reply(Reply(status, {}), 1).is_unavailable is is_tried_again


def test_a_body_is_the_text_and_that_of_an_error_is_cut() -> None:
    assert read_reply(Reply(200, {}, b""), 1) == ToolResult("", False, 200, 1)
    assert read_reply(Reply(299, {}, b"x"), 3) == ToolResult("x", False, 299, 3)
    assert read_reply(Reply(300, {}, b"x"), 1).is_error
    long = read_reply(Reply(400, {}, b"y" * (MOST_SHOWN + 1)), 1)
    assert long.text.endswith(f" 400: {'y' * 500}")
    assert read_reply(Reply(400, {}, b" \n"), 1).text.endswith(" 400")


@pytest.mark.parametrize(
    ("result", "text", "is_error"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb", False),
        ({"content": [{"type": "resource", "resource": {"text": "inside", "uri": "file:///a"}}]}, "inside", False),
        ({"content": [{"type": "image", "mimeType": "image/png"}]}, "[image image/png]", False),
        ({"content": [{"type": "resource_link", "uri": "file:///a"}]}, "[resource_link file:///a]", False),
        ({"content": [{}]}, "[content]", False),
        ({"content": [{"type": "text", "text": 5}, "x"]}, "[text]", False),
        ({"structuredContent": {"é": 1}}, '{"é": 1}', False),
        ({"content": [], "structuredContent": None}, "", False),
        ({"content": [{"type": "text", "text": "a"}], "structuredContent": {"b": 1}}, "a", False),
        ({"content": [{"type": "text", "text": "no"}], "isError": True}, "Error: no", True),
        ({"content": [{"type": "text", "text": "no"}], "isError": "true"}, "no", False),
        ({"content": [{"type": "text", "text": "\x00"}]}, "UTF-8", True),
        ({"content": [{"type": "text", "text": "é" * 5}]}, "é" * 5, False),
        (
            {"content": [{"type": "text", "text": "é" * 5 + "x"}]},
            "10 bytes",
            True,
        ),
    ],
)
def test_a_result_over_mcp_is_its_texts(result: dict[str, Any], text: str, is_error: bool) -> None:
    most = 10 if "é" * 5 in str(result) else 1000
    found = read_mcp_result(result, most, 2)
    assert found == ToolResult(found.text if is_error else text, is_error, 200, 2)
    assert text in found.text


def test_a_call_that_was_not_approved_says_why() -> None:
    assert refusal_of(None) is None
    assert refusal_of(Verdict(ApprovalState.APPROVED, "fine")) is None
    assert "refused" in str(refusal_of(Verdict(ApprovalState.REFUSED, None)))
    assert str(refusal_of(Verdict(ApprovalState.REFUSED, "Too dear."))).endswith(": Too dear.")
    late = [state for state in ApprovalState if state not in (ApprovalState.APPROVED, ApprovalState.REFUSED)]
    assert all("in time" in str(refusal_of(Verdict(state, None))) for state in late)


def test_an_order_knows_its_kind_and_what_answers() -> None:
    http = HttpTool(url=URL)
    server = McpServer.model_validate(
        {"type": "mcp", "url": URL, "tools": {"find": {"name": "find", "parameters": {}}}}
    )
    orders = [
        ToolOrder("calculator", "{}"),
        ToolOrder("weather", "{}", tool=http),
        ToolOrder("tracker__find", "{}", tool=server),
        ToolOrder("gone", "{}"),
    ]
    assert [one.kind for one in orders] == ["builtin", "http", "mcp", "unknown"]
    assert [one.owner for one in orders] == ["calculator", "weather", "tracker", "gone"]
    assert ToolOrder("a__b", "{}", tool=http).owner == "a__b"
    found = orders[2].tool_of(server)
    assert found is not None
    assert found.name == "find"
    assert ToolOrder("tracker__close", "{}").tool_of(server) is None


def test_calls_of_built_in_tools_and_of_tools_that_are_gone() -> None:
    told: list[tuple[str, str]] = []
    caller = ToolCaller(GuardedClient(Settings()), context_window=1, most_of_one=1)
    caller.on_call = lambda kind, result, took_s: told.append((kind, str(result)))
    server = McpServer.model_validate({"type": "mcp", "url": URL, "tools": {}})
    cases = [
        (
            ToolOrder("file_search", '{"query": "x"}'),
            "file_search",
        ),
        (ToolOrder("file_search", '{"query": ""}'), "at query"),
        (ToolOrder("tracker__gone", "{}", tool=server), "tool tracker__gone"),
        (ToolOrder("calculator", '{"expression": "1", "unit": "m"}'), "arguments"),
        (ToolOrder("calculator", '{"expression": "1"}', refusal="it was refused"), "it was refused"),
    ]
    for order, text in cases:
        found = caller.call(order)
        assert found.text == Naming("Error: ", text)
        assert (found.is_error, found.tries) == (True, 0)
    assert told == [
        ("builtin", "not_called"),
        ("builtin", "not_called"),
        ("mcp", "not_called"),
        *[("builtin", "not_called")] * 2,
    ]


@pytest.mark.parametrize(
    ("expression", "value"),
    [("-7 // 2", "-4"), ("7 % -3", "-2"), ("+5 - -2", "7"), ("1 / 4", "0.25"), ("2 ** -1", "0.5"), ("1 ** 256", "1")],
)
def test_the_calculator_has_the_signs_of_arithmetic(expression: str, value: str) -> None:
    assert compute(expression) == value


def test_an_exponent_has_a_bound() -> None:
    for expression in ("1 ** 257", "1 ** -257"):
        with pytest.raises(ValueError, match="256"):
            compute(expression)

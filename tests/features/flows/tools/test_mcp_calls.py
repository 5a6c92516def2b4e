"""Tools of a server of MCP: a real one, made with the package ``mcp``, and a scripted one for what is rare."""

import re
from typing import Any

import pytest

from headrace.features.flows.server_listing import with_tools
from headrace.features.flows.tools.mcp_servers import servers_of
from headrace.features.flows.tools.tool_caller import ToolCaller
from headrace.features.flows.tools.tool_definition import McpEndpoint, McpServer
from headrace.features.flows.tools.tool_results import ToolOrder, ToolResult, read_mcp_result
from headrace.store.calls.ssrf_guard import GuardedClient
from headrace.store.settings import Settings
from tests.processes import StartProcess, python
from tests.workers.receiver import Receiver

OPEN = Settings(webhook_allow_http=True, webhook_allow_networks=("127.0.0.0/8",))
LONG_MS = 60_000


def caller() -> ToolCaller:
    return ToolCaller(GuardedClient(OPEN), context_window=100, most_of_one=4, sleep=lambda _: None)


def test_tools_of_a_real_server_are_listed_and_called(start_process: StartProcess) -> None:
    process = start_process(python("-m", "tests.features.flows.tools.mcp_server"))
    found = re.search(r"ports=(\d+),(\d+);", process.wait_log(";"))
    assert found is not None
    for port in found.groups():
        endpoint = McpEndpoint(type="mcp", url=f"http://127.0.0.1:{port}/mcp", timeout_ms=LONG_MS)
        server = with_tools(servers_of(OPEN, GuardedClient(OPEN)), "demo", endpoint)
        told = server.functions("demo")
        assert {name: one["description"] for name, one in told.items()} == {
            "demo__add": "Adds two numbers.",
            "demo__fail": "Fails.",
        }
        assert told["demo__add"]["parameters"]["required"] == ["a", "b"]
        assert called(server, "demo__add", '{"a": 2, "b": 3}') == ToolResult("2 and 3 are 5", status=200, tries=1)
        failed = called(server, "demo__fail", '{"why": "rain"}')
        assert (failed.is_error, "not today: rain" in failed.text, failed.tries) == (True, True, 1)
        assert called(server, "demo__add", '{"a": "two", "b": 3}').tries == 0
        assert "no tool demo__gone" in called(server, "demo__gone", "{}").text


def called(server: McpServer, name: str, arguments: str) -> ToolResult:
    return caller().call(ToolOrder(name, arguments, "tnt_1", "job_1", server))


@pytest.mark.parametrize(
    ("result", "text", "is_error"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb", False),
        ({"content": [{"type": "image", "data": "…", "mimeType": "image/png"}]}, "[image image/png]", False),
        ({"content": [{"type": "resource", "resource": {"uri": "x:", "text": "inside"}}]}, "inside", False),
        ({"content": [], "structuredContent": {"n": 1}}, '{"n": 1}', False),
        ({"content": "none"}, "", False),
        ({"content": [{"type": "text", "text": "no"}], "isError": True}, "Error: no", True),
        ({"content": [{"type": "text", "text": "\x00"}]}, "UTF-8", True),
        ({"content": [{"type": "text", "text": "x" * 99}]}, "64 bytes", True),
    ],
)
def test_a_result_is_a_text_for_the_model(result: dict[str, Any], text: str, is_error: bool) -> None:
    found = read_mcp_result(result, 64, 1)
    assert (text in found.text if is_error else found.text == text, found.is_error) == (True, is_error)


def test_a_server_without_an_answer_is_tried_again_and_then_left_alone_with_all_its_tools() -> None:
    gone = Receiver()
    endpoint = McpEndpoint(type="mcp", url=gone.url("/mcp"), timeout_ms=LONG_MS)
    gone.close()
    schema = {"parameters": {"type": "object"}}
    server = McpServer(**endpoint.model_dump(), tools={name: {"name": name, **schema} for name in ("a", "b")})
    calls = caller()
    for _ in range(3):
        made = calls.call(ToolOrder("demo__a", "{}", "tnt_1", "job_1", server))
        assert ("connection refused" in made.text, made.tries) == (True, 2)
    left = calls.call(ToolOrder("demo__b", "{}", "tnt_1", "job_1", server))
    assert "tool demo" in left.text

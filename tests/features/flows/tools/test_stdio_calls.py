"""Servers of MCP over stdio: a real one, made with the package ``mcp``, and small programs for what goes wrong."""

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.features.flows.server_listing import with_tools
from headrace.features.flows.tools.mcp_servers import McpServers
from headrace.features.flows.tools.mcp_stdio import mcp_process
from headrace.features.flows.tools.tool_caller import ToolCaller
from headrace.features.flows.tools.tool_definition import McpEndpoint, McpServer
from headrace.features.flows.tools.tool_results import ToolOrder, ToolResult
from headrace.store.calls.ssrf_guard import CallTimedOut, GuardedClient
from headrace.store.child_process import still_alive
from headrace.store.settings import Settings
from tests.features.flows.tools import mcp_server
from tests.processes import StartProcess, python, wait_for

REAL = (sys.executable, mcp_server.__file__, "--stdio")
ENDPOINT = McpEndpoint(type="mcp", command="demo", timeout_ms=60_000, max_attempts=1, max_result_bytes=10_000)
SERVER = McpServer(**ENDPOINT.model_dump(), tools={"now": {"name": "now", "parameters": {"type": "object"}}})

# It and its child do not end when they are asked to. The line shows that both run.
DEAF = """
trap '' TERM
sleep 1000 &
echo $$ $! > "$0.new"; mv "$0.new" "$0"
echo '{"method": "notifications/progress"}'
wait
"""
CALLER = """
import sys, tempfile
from headrace.features.flows.tools.mcp_stdio import mcp_process
tempfile.tempdir = sys.argv[1]
with mcp_process(sys.argv[2:], 1000):
    pass
"""


def called(command: Sequence[str], name: str, arguments: str = "{}", server: McpServer = SERVER) -> ToolResult:
    commands = {"demo": tuple(command)}
    caller = ToolCaller(GuardedClient(Settings()), context_window=100, most_of_one=4, commands=commands)
    return caller.call(ToolOrder(name, arguments, "tnt_1", "job_1", server))


def deaf(told: Path) -> list[str]:
    return ["/bin/sh", "-c", DEAF, str(told)]


def pids(told: Path) -> set[int]:
    return set(map(int, told.read_text().split()))


def test_a_real_server_is_listed_and_called_and_gets_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("HEADRACE_API_KEY", "secret")
    server = with_tools(McpServers(GuardedClient(Settings()), {"demo": REAL}), "demo", ENDPOINT)
    told = server.functions("demo")
    assert told["demo__add"]["description"] == "Adds two numbers."
    assert told["demo__add"]["parameters"]["required"] == ["a", "b"]
    added = called(REAL, "demo__add", '{"a": 2, "b": 3}', server)
    assert added == ToolResult("2 and 3 are 5", status=200, tries=1)
    failed = called(REAL, "demo__fail", '{"why": "rain"}', server)
    assert (failed.is_error, "not today: rain" in failed.text, failed.status) == (True, True, 200)
    seen = json.loads(called(REAL, "demo__surroundings", "{}", server).text)
    assert seen == {"variables": ["HOME", "LANG", "PATH", "TMPDIR"], "files": []}


@pytest.mark.parametrize(
    ("command", "text", "status"),
    [
        (["/no/such/program"], "not be started", None),
        (["/bin/sh", "-c", "exit 3"], "exit code 3", None),
        (["/bin/sh", "-c", "while :; do echo junk; done"], "10000 bytes", 200),
        (["/bin/sh", "-c", "exec tr '\\0' x < /dev/zero"], "10000 bytes", 200),
        (["/bin/sh", "-c", """echo junk; echo '{"id": 1, "result": {}}'"""], "version of MCP", 200),
    ],
)
def test_a_bad_program_is_an_error_for_the_model(command: list[str], text: str, status: int | None) -> None:
    result = called(command, "demo__now")
    assert text in result.text
    assert (result.is_error, result.status, result.tries) == (True, status, 1)


def test_a_command_that_this_worker_does_not_have_is_not_tried() -> None:
    caller = ToolCaller(GuardedClient(Settings()), context_window=100, most_of_one=4)
    for _ in range(4):
        result = caller.call(ToolOrder("demo__now", "{}", "tnt_1", "job_1", SERVER))
        assert result == ToolResult(result.text, is_error=True)
        assert "command demo" in result.text


def test_nothing_is_left_of_a_process_behind_its_deadline(tmp_path: Path) -> None:
    told = tmp_path / "pids"
    with (
        pytest.raises(CallTimedOut),
        mcp_process(deaf(told), 60.0, lambda: 99.0 if told.exists() else 0.0),
    ):
        pass
    assert len(pids(told)) == 2
    wait_for(lambda: not still_alive(pids(told)), "the end of the program and its child")


def test_nothing_is_left_of_a_process_when_its_caller_dies(tmp_path: Path, start_process: StartProcess) -> None:
    told = tmp_path / "pids"
    process = start_process(python("-c", CALLER, str(tmp_path), *deaf(told)))
    wait_for(told.exists, "the start of the program")
    assert still_alive(pids(told)) == pids(told)
    process.signal(signal.SIGKILL)
    process.wait_exit()
    wait_for(lambda: not still_alive(pids(told)), "the end of the program and its child")

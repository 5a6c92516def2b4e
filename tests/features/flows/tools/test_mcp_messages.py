"""The messages of a session with a server of MCP, over a wire that is a list; and the operator's commands."""

from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest

from headrace.features.flows.tools.mcp_client import McpAnswer, McpRefused, McpSession
from headrace.features.flows.tools.mcp_servers import servers_of
from headrace.features.flows.tools.mcp_stdio import CommandUnknown
from headrace.features.flows.tools.tool_definition import McpEndpoint
from headrace.store.calls.ssrf_guard import AddressRefused, CallFailed, GuardedClient
from headrace.store.mcp_commands import check_commands, parse_commands
from headrace.store.scale_bounds import ScaleBounds, parse_bounds, parse_range
from headrace.store.settings import Settings


class Wire:
    """Keeps what was sent, and answers by a function of the method and its parameters."""

    def __init__(self, results: Callable[[str, Mapping[str, Any]], object]) -> None:
        self._results = results
        self.sent: list[tuple[Any, int, str | None]] = []
        self.version = ""

    def send(self, message: Mapping[str, Any], most_bytes: int, answer: McpAnswer | None, key: str | None) -> None:
        self.sent.append((dict(message), most_bytes, key))
        if answer is not None:
            result = self._results(message["method"], message["params"])
            answer.note(orjson.dumps({"jsonrpc": "2.0", "id": answer.id, "result": result}))

    def agreed(self, version: str) -> None:
        self.version = version


@pytest.mark.parametrize("version", ["2025-03-26", "2025-06-18", "2025-11-25"])
def test_a_session_agrees_on_a_version_and_names_itself(version: str) -> None:
    wire = Wire(lambda *_: {"protocolVersion": version})
    McpSession(wire).initialize()
    assert wire.version == version
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "headrace", "version": "1"}}
    assert wire.sent == [
        ({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}, 262_144, None),
        ({"jsonrpc": "2.0", "method": "notifications/initialized"}, 262_144, None),
    ]


def test_a_call_carries_its_key_and_a_list_its_cursor() -> None:
    pages: dict[object, object] = {None: {"tools": [{"name": "a"}], "nextCursor": "2"}, "2": {"tools": [{"name": "b"}]}}
    wire = Wire(lambda method, params: {"content": []} if method == "tools/call" else pages[params.get("cursor")])
    session = McpSession(wire)
    assert session.list_tools(7) == [{"name": "a"}, {"name": "b"}]
    assert session.call_tool("a", {"x": 1}, "job_1", 9) == {"content": []}
    params = {"name": "a", "arguments": {"x": 1}, "_meta": {"idempotency-key": "job_1"}}
    assert wire.sent == [
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}, 7, None),
        ({"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {"cursor": "2"}}, 7, None),
        ({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": params}, 9, "job_1"),
    ]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"protocolVersion": "1"}, "2025-03-26, 2025-06-18, 2025-11-25"),
        ([], "no result"),
    ],
)
def test_a_handshake_that_is_none_is_refused(result: object, said: str) -> None:
    with pytest.raises(McpRefused, match=said):
        McpSession(Wire(lambda *_: result)).initialize()


@pytest.mark.parametrize("tools", [None, {}, ["a"]])
def test_a_list_that_is_none_is_refused(tools: object) -> None:
    with pytest.raises(McpRefused, match="list of tools"):
        McpSession(Wire(lambda *_: {"tools": tools})).list_tools(1)


def test_an_answer_is_found_among_other_messages_and_a_long_refusal_is_cut() -> None:
    answer = McpAnswer(3)
    for other in (b"no", b"[1]", b'{"id": 4, "result": {}}', b'{"id": 3, "method": "ping"}'):
        answer.note(other)
    assert not answer.is_in
    with pytest.raises(McpRefused, match="no answer"):
        answer.result()
    answer.note(orjson.dumps({"id": 3, "error": {"message": "x" * 600}}))
    assert answer.is_in
    with pytest.raises(McpRefused) as refused:
        answer.result()
    assert str(refused.value).partition(": ")[2] == "x" * 500


def test_the_operators_commands_are_read_and_shown_by_name_alone() -> None:
    given = '{"clock": ["/usr/bin/clock", "--utc"], "a-b_C1": ["/x"]}'
    assert parse_commands(given) == {"clock": ("/usr/bin/clock", "--utc"), "a-b_C1": ("/x",)}
    assert (parse_commands("  "), check_commands(given)) == ({}, given)
    for bad, said in (
        ("{", "not valid JSON: "),
        ("[]", "JSON object: "),
        ('{"a b": ["/x"]}', "'a b'"),
        ('{"%s": ["/x"]}' % ("a" * 65), repr("a" * 65)),
        ('{"a": []}', "command a is not a list"),
        ('{"a": ["/x", 1]}', "command a is not a list"),
        ('{"a": ["./x"]}', "command a is no absolute path"),
        ('{"a": ["/x", "\\u0000"]}', "command a has the character NUL"),
    ):
        with pytest.raises(ValueError, match=said):
            check_commands(bad)


def test_a_server_of_a_command_that_the_operator_has_not_is_refused() -> None:
    settings = Settings(mcp_commands='{"clock": ["/usr/bin/clock"]}')
    servers = servers_of(settings, GuardedClient(settings))
    with pytest.raises(CommandUnknown, match="command other"):
        servers.session(McpEndpoint(type="mcp", command="other"), 1.0)


def test_a_refused_address_is_named_by_its_reason_alone() -> None:
    client = GuardedClient(Settings(), resolve=lambda _host, _port: ["93.184.216.34", "10.0.0.1"])
    for url, said in (
        ("https://example.com/", "not resolve"),
        ("http://example.com/", "https://"),
        ("https://10.0.0.1/", "not public"),
    ):
        with pytest.raises(AddressRefused, match=said) as refused:
            client.get(url, headers={}, timeout_s=60, most_bytes=1)
        assert url not in str(refused.value)

    def unknown(_host: str, _port: int) -> list[str]:
        raise OSError("no such host")

    with pytest.raises(CallFailed, match="connection failed"):
        GuardedClient(Settings(), resolve=unknown).delete("https://example.com/", headers={}, timeout_s=60)


def test_ranges_of_workers_are_read_by_model() -> None:
    assert parse_bounds(["tiny=0..4", " tiny@2 = 1..1000 "]) == (
        ScaleBounds("tiny", 0, 4),
        ScaleBounds("tiny@2", 1, 1000),
    )
    assert parse_range("3..3") == (3, 3)
    for bad, said in (
        ("4", r"'4': .*0\.\.4"),
        ("4..3", r"'4\.\.3': .*1 to 1,000"),
        ("0..0", r"'0\.\.0': .*1 to 1,000"),
        ("0..1001", r"'0\.\.1001': .*1 to 1,000"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_range(bad)
    for entries, said in (
        (["tiny"], "'tiny': .*NAME=0..4"),
        (["=0..4"], "'=0..4': .*NAME=0..4"),
        (["tiny=0..4", "tiny=1..2"], "'tiny' .*twice"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_bounds(entries)

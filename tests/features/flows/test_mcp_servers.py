"""Servers of MCP in the registry: what they tell is stored and shown, and what cannot be offered is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx2
import orjson
import pytest

from headrace.features.flows.server_listing import server_with, with_tools
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import McpEndpoint
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.settings import Settings
from tests.features.flows.tools.test_mcp_client import as_json, server
from tests.producer_api.calling import error_of
from tests.producer_api.serving import serving
from tests.workers.receiver import Answer, Call, Receiver

TOOLS = "/v1/tools"
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
TOLD = [
    {"name": "search", "description": "Searches.", "inputSchema": SCHEMA},
    {"name": "issues.close", "inputSchema": {"type": "object"}},
]
ENDPOINT = McpEndpoint(type="mcp", url="https://mcp.example.com/")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.answer = server(lambda call: as_json(call, result={"tools": TOLD}))
    yield receiver
    receiver.close()


# A server over stdio that tells one tool.
SHELL_SERVER = """
read hello; echo '{"id": 1, "result": {"protocolVersion": "2025-06-18"}}'
read begun; read list; echo '{"id": 2, "result": {"tools": [{"name": "now", "inputSchema": {"type": "object"}}]}}'
read end
"""
COMMANDS = {"clock": ["/bin/sh", "-c", SHELL_SERVER], "gone": ["/no/such/program"]}


@pytest.fixture
def local(settings: Settings, key: str) -> Iterator[httpx2.Client]:
    """A client of a server that may call this machine."""
    opened = settings.model_copy(
        update={
            "webhook_allow_http": True,
            "webhook_allow_networks": ("127.0.0.0/8",),
            "mcp_commands": orjson.dumps(COMMANDS).decode(),
        }
    )
    with (
        serving(opened) as running,
        httpx2.Client(base_url=running.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client,
    ):
        yield client


def test_a_server_is_asked_when_it_is_stored_and_again_when_it_is_replaced(
    local: httpx2.Client, db: Database, tenant: str, receiver: Receiver
) -> None:
    made = {"type": "mcp", "url": receiver.url("/mcp"), "headers": {"Authorization": "Bearer s3cr3t"}}
    created = local.post(TOOLS, json={"name": "tracker", **made})
    assert created.status_code == 201, created.text
    one = created.json()
    assert (one["type"], one["headers"], one["parameters"]) == ("mcp", ["Authorization"], None)
    assert one["tools"] == [
        {"name": "tracker__search", "description": "Searches.", "parameters": SCHEMA},
        {"name": "tracker__issues_close", "description": "", "parameters": {"type": "object"}},
    ]
    assert {call.headers["authorization"] for call in receiver.calls} == {"Bearer s3cr3t"}
    put = f"{TOOLS}/{one['id']}"
    replaced = local.put(put, json=made | {"only": ["issues.close"]}).raise_for_status().json()
    assert [tool["name"] for tool in replaced["tools"]] == ["tracker__issues_close"]
    found = tools.called(db, tenant, "tracker__issues_close")
    assert found is not None
    assert found.type == "mcp"
    assert tools.called(db, tenant, "other__search") is None
    receiver.answer = lambda _: Answer(401)
    refused = local.put(put, json=made)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "tool_server_failed")
    assert local.get(TOOLS).json()["data"] == [replaced]


def test_a_server_without_a_list_and_a_bad_name_are_refused_before_anything_is_stored(
    local: httpx2.Client, receiver: Receiver
) -> None:
    made: dict[str, Any] = {"name": "tracker", "type": "mcp", "url": receiver.url("/mcp")}
    for change, param in [
        ({"name": "a__b"}, "name"),
        ({"name": "a_"}, "name"),
        ({"only": ["find"]}, "only"),
        ({"description": "ours"}, "description"),
        ({"headers": {"Mcp-Session-Id": "1"}}, "headers"),
    ]:
        refused = local.post(TOOLS, json=made | change)
        assert (refused.status_code, error_of(refused)["param"]) == (400, param), refused.text

    refused = local.post(TOOLS, json=made | {"url": "https://10.0.0.1/"})
    assert (refused.status_code, error_of(refused)["code"]) == (400, "webhook_url_not_allowed"), "it is not called"

    def no_list(call: Call) -> Answer:
        return as_json(call, error={"code": -32601, "message": "Method not found"})

    receiver.answer = server(no_list)
    refused = local.post(TOOLS, json=made)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "url")
    assert "Method not found" in error_of(refused)["message"]
    assert local.get(TOOLS).json()["data"] == []


def test_a_command_is_the_operators_or_refused(local: httpx2.Client) -> None:
    made: dict[str, Any] = {"name": "clock", "type": "mcp", "command": "clock", "timeout_ms": 60_000}
    for change, param, why in [
        ({"command": "date"}, "command", "command date"),
        ({"command": "/bin/date"}, "command", "pattern"),
        ({"command": "gone"}, "command", "started"),
        ({"url": "https://mcp.example.com/"}, None, "`url` or `command`"),
        ({"command": None}, None, "`url` or `command`"),
        ({"headers": {"X-Key": "k"}}, None, "`headers`"),
    ]:
        refused = local.post(TOOLS, json=made | change)
        assert (refused.status_code, error_of(refused)["param"]) == (400, param), refused.text
        assert why in error_of(refused)["message"]
    assert local.get(TOOLS).json()["data"] == []
    one = local.post(TOOLS, json=made).raise_for_status().json()
    assert (one["command"], one["url"], [tool["name"] for tool in one["tools"]]) == ("clock", None, ["clock__now"])
    replaced = {name: value for name, value in made.items() if name != "name"} | {"max_attempts": 1}
    assert local.put(f"{TOOLS}/{one['id']}", json=replaced).raise_for_status().json()["max_attempts"] == 1
    (listed,) = local.get(TOOLS).json()["data"]
    assert (listed["command"], listed["url"]) == ("clock", None)


def test_a_server_is_asked_for_ten_seconds_at_most() -> None:
    asked: list[float] = []

    class Servers:
        @contextmanager
        def session(self, endpoint: McpEndpoint, timeout_s: float) -> Iterator[Any]:
            asked.append(timeout_s)
            yield SimpleNamespace(list_tools=lambda most_bytes: [{"name": "a", "title": "A.", "inputSchema": None}])

    servers: Any = Servers()
    for timeout_ms in (500, 10_000, 60_000):
        made = with_tools(servers, "demo", ENDPOINT.model_copy(update={"timeout_ms": timeout_ms}))
        assert made.timeout_ms == timeout_ms
    assert asked == [0.5, 10.0, 10.0]
    assert made.tools["a"].model_dump() == {
        "name": "a",
        "description": "A.",
        "parameters": {"type": "object", "properties": {}},
    }


def test_names_that_the_server_does_not_have_are_refused_with_those_that_it_has() -> None:
    for change, param in (
        ({"only": ("c",)}, "only"),
        ({"require_approval": {"always": {"tool_names": ["c"]}}}, "require_approval"),
    ):
        endpoint = McpEndpoint.model_validate(ENDPOINT.model_dump() | change)
        with pytest.raises(InvalidRequest) as refused:
            server_with("demo", endpoint, [{"name": "b"}, {"name": "a"}])
        assert ("c: it has a, b" in refused.value.message, refused.value.param) == (True, param)
    one = McpEndpoint.model_validate(ENDPOINT.model_dump() | {"only": ("b",)})
    assert [*server_with("demo", one, [{"name": "b"}, {"name": "a"}]).tools] == ["b"]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([], "0 tools"),
        ([{"name": f"t{number}", "inputSchema": SCHEMA} for number in range(65)], "65 tools"),
        ([{"name": "a.b"}, {"name": "a/b"}], "demo__a_b"),
        ([{"name": "x" * 60}], "demo__x"),
        ([{"name": "a", "inputSchema": {"type": "string"}}], "demo__a: parameters"),
        ([{"name": "a", "inputSchema": "none"}], "demo__a: parameters"),
        ([{"name": "a", "inputSchema": {"type": "object", "properties": {"b": {"type": "no type"}}}}], "demo__a: "),
        ([{"name": "a", "description": "\x00"}], "NUL"),
        (
            [{"name": f"t{one}", "inputSchema": {**SCHEMA, "description": "x" * 9000}} for one in range(40)],
            "262144 bytes",
        ),
    ],
)
def test_what_cannot_be_offered_is_named(told: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        server_with("demo", ENDPOINT, orjson.loads(orjson.dumps(told)))
    assert (refused.value.code, refused.value.param) == ("tool_server_failed", "only")

"""The registry of tools over HTTP: what is stored and shown, what is refused, and what no reader sees."""

from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from headrace.features.flows.tools import tools
from headrace.store.db.database import Database
from tests.cases import some_of
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient

TOOLS = "/v1/tools"
URL = "https://tools.example.com/weather"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "The weather.",
    "parameters": SCHEMA,
    "url": URL,
    "headers": {"Authorization": "Bearer s3cr3t"},
}


def test_a_tool_is_stored_replaced_and_deleted_and_tells_no_header(api: httpx2.Client, db: Database) -> None:
    created = api.post(TOOLS, json=TOOL)
    assert created.status_code == 201, created.text
    made = created.json()
    assert made == {
        "id": made["id"],
        "object": "tool",
        "name": "weather",
        "type": "http",
        "description": "The weather.",
        "parameters": SCHEMA,
        "tools": None,
        "url": URL,
        "command": None,
        "headers": ["Authorization"],
        "timeout_ms": 10_000,
        "max_attempts": 2,
        "max_result_bytes": 16_384,
        "require_approval": "never",
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
    }
    other = api.post(TOOLS, json=TOOL | {"name": "other"}).raise_for_status().json()
    one = f"{TOOLS}/{made['id']}"
    replaced = api.put(one, json={"url": f"{URL}/2", "timeout_ms": 500}).raise_for_status().json()
    assert (replaced["url"], replaced["timeout_ms"], replaced["headers"]) == (f"{URL}/2", 500, [])
    assert (replaced["name"], replaced["parameters"]["properties"]) == ("weather", {})
    listed = api.get(TOOLS)
    assert listed.json()["data"] == [other, replaced]
    assert "s3cr3t" not in created.text + listed.text + api.get(one).text
    with db.begin() as connection:
        assert "s3cr3t" not in str(connection.execute(text("SELECT audit_log::text FROM audit_log")).all())
    assert api.delete(one).json() == {"id": made["id"], "object": "tool.deleted", "deleted": True}
    assert api.get(one).status_code == 404
    assert api.get(TOOLS).json()["data"] == [other]


@some_of(
    3,
    ("change", "param", "code"),
    [
        ({"name": "two words"}, "name", "invalid_value"),
        ({"url": "http://tools.example.com/"}, "url", "webhook_url_not_allowed"),
        ({"url": "https://10.0.0.1/"}, "url", "webhook_url_not_allowed"),
        ({"parameters": {"type": "string"}}, "parameters", "invalid_value"),
        (
            {"parameters": {"type": "object", "properties": {"a": {"type": "no type"}}}},
            "parameters",
            "invalid_json_schema",
        ),
        ({"headers": {"Content-Length": "3"}}, "headers", "invalid_value"),
        ({"headers": {"X-A": "a\r\nb"}}, "headers", "invalid_value"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "headers", "invalid_value"),
        ({"timeout_ms": 60_001}, "timeout_ms", "invalid_value"),
        ({"secret": "x"}, "secret", "unsupported_parameter"),
    ],
)
def test_a_tool_that_cannot_be_called_is_refused(
    api: httpx2.Client, change: dict[str, Any], param: str, code: str
) -> None:
    refused = api.post(TOOLS, json=TOOL | change)
    assert (refused.status_code, error_of(refused)["param"], error_of(refused)["code"]) == (400, param, code)
    assert api.get(TOOLS).json()["data"] == []


def test_names_are_unique_in_a_tenant_and_tools_are_bounded(
    api: httpx2.Client, make_client: MakeClient, other_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = make_client(other_key)
    stranger.post(TOOLS, json=TOOL).raise_for_status()
    api.post(TOOLS, json=TOOL).raise_for_status()
    taken = api.post(TOOLS, json=TOOL)
    assert (taken.status_code, "named weather" in error_of(taken)["message"]) == (409, True)
    assert api.post(TOOLS, json=TOOL | {"name": "calculator"}).status_code == 409
    monkeypatch.setattr(tools, "MAX_TOOLS", 1)
    full = api.post(TOOLS, json=TOOL | {"name": "more"})
    assert (full.status_code, "the most" in error_of(full)["message"]) == (409, True)
    assert [one["name"] for one in stranger.get(TOOLS).json()["data"]] == ["weather"]

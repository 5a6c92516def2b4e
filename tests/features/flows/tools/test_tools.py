"""The rows of tools: their tenant, their record, and the definition that answers a call."""

from typing import Any

import pytest

from headrace.features.flows.tools import tools
from headrace.features.flows.tools.builtin import BUILT_IN
from headrace.features.flows.tools.tool_definition import Definition, read_definition
from headrace.store.audit_log import hash_of, list_entries
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, HeadraceError, InvalidRequest, NotFound
from tests.refusals import Naming
from tests.store.making import Query

HTTP = {"type": "http", "url": "https://tools.example.com/a?token=1", "headers": {"X-Key": "k"}}
TOOL = {"name": "read", "parameters": {"type": "object", "properties": {}}}
SERVER = {"type": "mcp", "url": "https://mcp.example.com/", "tools": {"read": TOOL}}


def definition(**changes: Any) -> Definition:
    return read_definition({**HTTP, **changes})


def refused(run: Any) -> tuple[type[HeadraceError], str]:
    with pytest.raises(HeadraceError) as error:
        run()
    return type(error.value), error.value.message


def test_a_tool_is_its_tenants_and_its_changes_are_on_record(
    db: Database, tenant: str, other_tenant: str, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    weather = tools.create(db, tenant, "weather", definition(), actor="mia")
    clock = tools.create(db, tenant, "clock", read_definition(SERVER), actor="mia")
    theirs = tools.create(db, other_tenant, "weather", definition(description="theirs"), actor="mia")
    assert tools.list_tools(db, tenant) == [clock, weather], "by name"
    assert tools.named(db, tenant, ["weather", "nothing"]) == {"weather": weather}
    assert (tools.get(db, tenant, weather.id), weather.definition) == (weather, definition())
    changed = tools.replace(db, tenant, weather.id, definition(description="better"), actor="kai")
    assert (changed.id, changed.name, changed.created_at) == (weather.id, "weather", weather.created_at)
    assert changed.updated_at > weather.updated_at
    missing = (NotFound, f"no tool {weather.id}")
    for run in (
        lambda: tools.get(db, other_tenant, weather.id),
        lambda: tools.replace(db, other_tenant, weather.id, definition(), actor="eve"),
        lambda: tools.delete(db, other_tenant, weather.id, actor="eve"),
    ):
        assert refused(run) == missing
    taken = Naming("clock")
    assert refused(lambda: tools.create(db, tenant, "clock", definition(), actor="mia")) == (Conflict, taken)
    monkeypatch.setattr(tools, "MAX_TOOLS", 2)
    full = Naming("2 tools")
    assert refused(lambda: tools.create(db, tenant, "more", definition(), actor="mia")) == (Conflict, full)
    for name in BUILT_IN:
        built_in = Naming(name, "every organization")
        assert refused(lambda name=name: tools.create(db, tenant, name, definition(), actor="mia"))[1] == built_in
    tools.delete(db, tenant, weather.id, actor="kai")
    assert tools.list_tools(db, tenant) == [clock]
    assert tools.list_tools(db, other_tenant) == [theirs]
    told = [
        (e.actor, e.action, e.detail, e.after_hash)
        for e in reversed(list_entries(db, tenant))
        if e.resource == weather.id
    ]
    hashed = [
        hash_of(one.model_dump(mode="json", exclude={"url", "headers"}))
        for one in (definition(), definition(description="better"))
    ]
    assert told == [
        ("mia", "tool.created", {"name": "weather"}, hashed[0]),
        ("kai", "tool.updated", {"name": "weather"}, hashed[1]),
        ("kai", "tool.deleted", {"name": "weather"}, None),
    ]
    query('UPDATE tools SET definition = \'{"type": "pigeon"}\' WHERE id = :id', id=clock.id)
    other_release = Naming("clock", "another release")
    assert refused(lambda: tools.get(db, tenant, clock.id)) == (InvalidRequest, other_release)


def test_a_call_is_answered_by_the_tool_of_the_name_or_by_its_server(
    db: Database, tenant: str, other_tenant: str
) -> None:
    plain = tools.create(db, tenant, "plain", definition(), actor="mia").definition
    server = tools.create(db, tenant, "files", read_definition(SERVER), actor="mia").definition
    assert tools.called(db, tenant, "plain") == plain
    assert tools.called(db, tenant, "files__read") == server
    assert tools.called(db, tenant, "plain__read") is None, "a tool over HTTP has no tools of its own"
    assert tools.called(db, tenant, "nothing") is None
    assert tools.called(db, other_tenant, "plain") is None


def test_a_model_is_told_what_the_built_in_tools_take() -> None:
    told = {name: (one["parameters"]["required"], one["parameters"]["properties"]) for name, one in BUILT_IN.items()}
    assert told == {
        "calculator": (
            ["expression"],
            {"expression": {"type": "string", "maxLength": 200, "description": Naming()}},
        ),
        "file_search": (
            ["query"],
            {"query": {"type": "string", "minLength": 1, "maxLength": 1000, "description": Naming()}},
        ),
    }
    assert {one["parameters"]["additionalProperties"] for one in BUILT_IN.values()} == {False}

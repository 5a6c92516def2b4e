"""Responses whose tools the server calls, asked by the official client: servers of MCP, and registered tools."""

from collections.abc import Iterator
from typing import Any

import httpx2
import openai as sdk
import pytest
import redis
from openai import OpenAI

from models.catalog import register
from store.db.database import Database
from store.jobs import jobs
from store.payloads.tool_definition import McpServer
from store.registry.models import register_version
from store.tasks.call_tool import CALL_TOOL
from store.tenants.api_keys import create_tenant
from store.tools import tools
from tests.producer_api.calling import num_jobs
from tests.producer_api.turn_worker import TurnWorker

URL = "https://mcp.example.com/mcp"
THEIRS = "https://theirs.example.com/mcp"
SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}
SERVER: Any = {"type": "mcp", "server_label": "Issues", "server_url": URL, "require_approval": "never"}
CALL = '{"name": "tracker__find", "arguments": {}}'
ASKING: Any = {"model": "wide", "input": "Which issue is open?", "tools": [SERVER]}


@pytest.fixture(autouse=True)
def tracker(db: Database, tenant: str) -> None:
    """A model with room for tools, a server of the tenant, one of another, and the version that makes calls."""
    register(db, "wide", "fake", "auto", actor="t")
    told = {"find": {"name": "find.all", "parameters": SCHEMA}, "close": {"name": "close", "parameters": SCHEMA}}
    for owner, url in ((tenant, URL), (create_tenant(db, "globex"), THEIRS)):
        server = McpServer.model_validate({"type": "mcp", "url": url, "tools": told})
        tools.create(db, owner, "tracker", server, actor="t")
    runner = CALL_TOOL.fake_runner
    register_version(
        db, model="tools", runner=runner, source=runner, digest=runner, dtype="auto", context_window=100, actor="t"
    )


def worker_of(db: Database, client: redis.Redis, api: httpx2.Client, response_id: str) -> TurnWorker:
    return TurnWorker(db, client, api, response_id.replace("resp_", "job_"))


def until(events: Iterator[Any], kind: str) -> list[Any]:
    seen = [next(events)]
    while seen[-1].type != f"response.{kind}":
        seen.append(next(events))
    return seen


def test_a_stream_lists_the_tools_and_has_each_call_and_every_number_leads_to_the_rest(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    with openai.responses.create(**ASKING, max_tool_calls=2, stream=True) as stream:
        events = iter(stream)
        live = until(events, "mcp_list_tools.completed")
        worker = worker_of(db, redis_client, api, live[0].response.id)
        worker.say("answer", "Let me look.\n", CALL, f"\n{CALL}")
        live += until(events, "mcp_call_arguments.done")
        worker.call("answer:1", "Number 7.")
        live += until(events, "mcp_call.completed")
        worker.call("answer:2", "Error: gone", is_error=True)
        held = worker.say("answer:3", "Number ", "7.")
        live += list(events)
    assert [event.sequence_number for event in live] == list(range(len(live)))
    assert len(held.payload["input"]["messages"]) == 4
    done = live[-1].response
    assert live[-1].type == "response.completed"
    listed, first, one, two, last = done.output
    assert [tool.name for tool in listed.tools] == ["find.all", "close"]
    assert (first.content[0].text, last.content[0].text) == ("Let me look.", "Number 7.")
    assert (one.server_label, one.name, one.output, one.error) == ("Issues", "find.all", "Number 7.", None)
    assert (two.status, two.output, two.error.type) == ("failed", None, "mcp_tool_execution_error")
    assert [event.item for event in live if event.type == "response.output_item.done"] == done.output
    assert openai.responses.retrieve(done.id).output == done.output
    assert (done.tools[0].server_label, done.max_tool_calls) == ("Issues", 2)
    assert "listed" not in done.to_dict()
    for number in range(0, len(live) - 1, 4):
        assert list(openai.responses.retrieve(done.id, stream=True, starting_after=number)) == live[number + 1 :]


def test_a_response_goes_on_from_calls(
    db: Database, tenant: str, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    """The call and its result are turns of the chain, and of items that are sent back."""
    made = openai.responses.create(**ASKING, background=True)
    worker = worker_of(db, redis_client, api, made.id)
    worker.say("answer", CALL)
    worker.call("answer:1", "Number 7.")
    worker.say("answer:2", "Seven.")
    whole = openai.responses.retrieve(made.id)
    chained = openai.responses.create(model="wide", input="Why?", previous_response_id=made.id, background=True)
    given: Any = [*(item.to_dict() for item in whole.output), {"role": "user", "content": "Why?"}]
    sent = openai.responses.create(model="wide", input=given, background=True)
    for response_id in (chained.id, sent.id):
        turns = jobs.get(db, tenant, response_id.replace("resp_", "job_")).payload["input"]["messages"]
        assert [turn["role"] for turn in turns][-4:] == ["assistant", "tool", "assistant", "user"]
        assert turns[-3]["content"] == "Number 7."


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"server_url": THEIRS}, "tools[0].server_url"),
        ({"server_url": None}, "tools[0].server_label"),
        ({"require_approval": "sometimes"}, "tools[0].require_approval"),
        ({"require_approval": {"always": {"tool_names": ["gone"]}}}, "tools[0].require_approval"),
        ({"authorization": "secret"}, "tools[0].authorization"),
        ({"headers": {"X-Key": "secret"}}, "tools[0].headers"),
        ({"allowed_tools": ["gone"]}, "tools[0].allowed_tools"),
        ({"allowed_tools": []}, "tools[0].allowed_tools"),
        ({"allowed_tools": {"read_only": True}}, "tools[0].allowed_tools"),
        ({"connector_id": "connector_gmail"}, "tools[0].connector_id"),
    ],
)
def test_a_server_that_is_not_registered_is_refused(
    db: Database, api: httpx2.Client, changes: dict[str, Any], param: str
) -> None:
    refused = api.post("/v1/responses", json=ASKING | {"tools": [SERVER | changes]})
    wanted = 404 if changes.keys() == {"server_url"} else 400
    assert (refused.status_code, refused.json()["error"]["param"]) == (wanted, param), refused.text
    assert "secret" not in refused.text
    assert num_jobs(db) == 0


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"max_tool_calls": 50}, "max_tool_calls"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [SERVER, {"type": "function", "name": "f"}]}, "tools[1]"),
        ({"tools": [], "server_tools": {"names": ["gone"]}}, "server_tools.names[0]"),
    ],
)
def test_what_does_not_go_with_calls_is_refused(
    db: Database, openai: OpenAI, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(sdk.APIStatusError) as refused:
        openai.post("/responses", body=ASKING | changes, cast_to=dict[str, object])
    assert refused.value.param == param
    assert num_jobs(db) == 0


def test_some_tools_of_a_server_and_tools_by_name(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    """A server is found by its name too; the choice ``none`` makes an ordinary response."""
    by_name = {"type": "mcp", "server_label": "tracker", "allowed_tools": ["close"], "require_approval": "never"}
    both: Any = {"tools": [by_name], "extra_body": {"server_tools": {"names": ["calculator"]}}, "background": True}
    made = openai.responses.create(**ASKING | both)
    worker = worker_of(db, redis_client, api, made.id)
    held = worker.say("answer", '{"name": "calculator", "arguments": {"expression": "2+3"}}')
    assert [one["function"]["name"] for one in held.payload["input"]["tools"]] == ["calculator", "tracker__close"]
    worker.call("answer:1", "5")
    worker.say("answer:2", "Five.")
    _, called, _ = openai.responses.retrieve(made.id).output
    assert (called.server_label, called.name, called.output) == ("headrace", "calculator", "5")  # type: ignore[union-attr] # an mcp_call
    plain = openai.responses.create(**ASKING, tool_choice="none", background=True)
    assert api.get(f"/v1/jobs/{plain.id.replace('resp_', 'job_')}").json().get("steps") is None


def test_a_call_may_be_required_of_tools_by_name_alone(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    asked: Any = {"tool_choice": "required", "extra_body": {"server_tools": {"names": ["calculator"]}}}
    made = openai.responses.create(model="wide", input="how many?", background=True, **asked)
    held = worker_of(db, redis_client, api, made.id).say("answer", "Five.")
    assert held.payload["input"]["tool_choice"] == "required"

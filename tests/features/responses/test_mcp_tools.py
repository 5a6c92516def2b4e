"""Responses whose tools the server calls, asked by the official client: servers of MCP, and registered tools."""

from collections.abc import Iterator
from typing import Any

import httpx2
import openai as sdk
import pytest
import redis
from openai import OpenAI

from headrace.features.flows.task import CALL_TOOL
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import McpServer
from headrace.features.responses.mcp_tools import CalledTools, called_by
from headrace.features.responses.response_request import ResponseRequest
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.jobs import jobs
from headrace.store.payloads.server_tools import ServerTools
from headrace.store.registry.models import register_version
from headrace.store.tenants.api_keys import create_tenant
from tests.cases import some_of
from tests.producer_api.calling import num_jobs
from tests.producer_api.turn_worker import TurnWorker
from tests.refusals import Naming

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


def request_of(*servers: Any, **fields: Any) -> ResponseRequest:
    return ResponseRequest.model_validate(ASKING | {"tools": servers} | fields)


@pytest.mark.parametrize(
    ("changes", "fields", "wanted", "told"),
    [
        ({}, {}, {"names": ["tracker"]}, ["find.all", "close"]),
        ({"allowed_tools": ["find.all"]}, {}, {"names": ["tracker__find"]}, ["find.all"]),
        (
            {"allowed_tools": {"tool_names": ["close"]}, "require_approval": "always"},
            {"tool_choice": "required", "max_tool_calls": 4},
            {
                "names": ["tracker__close"],
                "require_approval": {"always": {"tool_names": ["tracker__close"]}},
                "max_tool_calls": 4,
                "tool_choice": "required",
            },
            ["close"],
        ),
        (
            {"require_approval": {"never": {"tool_names": ["close"]}}},
            {
                "server_tools": {
                    "names": ["calculator"],
                    "max_tool_calls": 3,
                    "approval_timeout_ms": 5000,
                    "require_approval": {"never": {"tool_names": ["calculator"]}},
                }
            },
            {
                "names": ["calculator", "tracker"],
                "max_tool_calls": 3,
                "approval_timeout_ms": 5000,
                "require_approval": {
                    "always": {"tool_names": ["tracker__find"]},
                    "never": {"tool_names": ["calculator", "tracker__close"]},
                },
            },
            ["find.all", "close"],
        ),
    ],
)
def test_the_model_may_call_the_tools_that_the_request_allows(
    db: Database, tenant: str, changes: dict[str, Any], fields: dict[str, Any], wanted: dict[str, Any], told: list[str]
) -> None:
    shorts = {"find.all": "tracker__find", "close": "tracker__close"}
    listed = [
        {"name": name, "description": "", "input_schema": SCHEMA, "annotations": None, "function": shorts[name]}
        for name in told
    ]
    assert called_by(db, tenant, request_of(SERVER | changes, **fields)) == CalledTools(
        ServerTools.model_validate(wanted), [{"server_label": "Issues", "tools": listed}]
    )
    assert called_by(db, tenant, request_of(SERVER | changes, **fields | {"tool_choice": "none"})) is None


UNREGISTERED = "`headrace tools put NAME"
STORED = "`headrace tools put`"
NAMES = "`tool_names`"


@some_of(
    3,
    ("changes", "field", "said"),
    [
        ({"server_url": THEIRS}, "server_url", UNREGISTERED),
        ({"server_url": None}, "server_label", UNREGISTERED),
        ({"server_label": ""}, "server_label", "required"),
        (
            {"require_approval": "sometimes"},
            "require_approval",
            "`always`, `never`",
        ),
        (
            {"require_approval": {"always": {"tool_names": ["gone"]}}},
            "require_approval",
            "names gone",
        ),
        ({"authorization": "secret"}, "authorization", STORED),
        ({"headers": {"X-Key": "secret"}}, "headers", STORED),
        ({"allowed_tools": []}, "allowed_tools", "no tool"),
        ({"allowed_tools": {"read_only": True}}, "allowed_tools", NAMES),
        ({"allowed_tools": {"tool_names": ["close"], "read_only": True}}, "allowed_tools", NAMES),
        ({"allowed_tools": {"tool_names": [1]}}, "allowed_tools", NAMES),
        ({"connector_id": "connector_gmail"}, "connector_id", "name a server"),
    ],
)
def test_a_server_that_is_not_registered_is_refused(
    db: Database, api: httpx2.Client, changes: dict[str, Any], field: str, said: str
) -> None:
    refused = api.post("/v1/responses", json=ASKING | {"tools": [SERVER | changes]})
    error, param = refused.json()["error"], f"tools[0].{field}"
    assert (refused.status_code, error["param"]) == (404 if said == UNREGISTERED else 400, param)
    assert error["message"] == Naming(f"`{param}`", said)
    assert num_jobs(db) == 0


def test_tools_that_do_not_go_together_are_named(db: Database, tenant: str) -> None:
    function = {"type": "function", "name": "f"}
    in_two = "in two"
    no_logprobs = "logprobs"
    for request, param, message in (
        (request_of(SERVER | {"allowed_tools": ["find.all", "gone"]}), "tools[0].allowed_tools",
         "tool gone"),
        (request_of(SERVER, SERVER), "tools", "twice"),
        (request_of(SERVER, function), "tools[1]", in_two),
        (request_of(SERVER, tool_choice=function), "tool_choice",
         "none, auto or required"),
        (request_of(SERVER, max_tool_calls=128), "max_tool_calls",
         "127"),
        (request_of(SERVER, top_logprobs=1), "top_logprobs", no_logprobs),
        (request_of(SERVER, include=["message.output_text.logprobs"]), "include[0]", no_logprobs),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest) as refused:
            called_by(db, tenant, request)
        assert (refused.value.param, str(refused.value)) == (param, Naming(message))


@some_of(
    2,
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


def test_a_known_key_has_its_response_after_its_tools_were_deleted(
    db: Database, api: httpx2.Client, tenant: str
) -> None:
    body, key = ASKING | {"background": True}, {"Idempotency-Key": "once"}
    first = api.post("/v1/responses", json=body, headers=key)
    assert first.status_code == 200, first.text
    before = num_jobs(db)
    tools.delete(db, tenant, tools.named(db, tenant, ["tracker"])["tracker"].id, actor="t")
    for changes, headers in (({}, {}), ({}, {"Idempotency-Key": "other"}), ({"input": "Another question"}, key)):
        assert api.post("/v1/responses", json=body | changes, headers=headers).status_code == 404
    again = api.post("/v1/responses", json=body, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert (again.headers["idempotent-replayed"], num_jobs(db)) == ("true", before)

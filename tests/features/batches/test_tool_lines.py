"""Lines of batches whose model calls tools of the server: of chats, responses and messages."""

from typing import Any

import httpx2
import pytest
import redis
from openai import OpenAI

from headrace.features.flows.task import CALL_TOOL
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import McpServer
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.registry.models import register_version
from tests.features.batches.test_batch_routes import make, read
from tests.features.batches.test_batch_routes import wait_for as wait_for_status
from tests.processes import wait_for
from tests.producer_api.turn_worker import TurnWorker

CALL = '{"name": "calculator", "arguments": {"expression": "2+3"}}'


ISSUES = {"name": "find", "parameters": {"type": "object", "properties": {}}}
FIND = '{"name": "tracker__find", "arguments": {}}'


@pytest.fixture(autouse=True)
def models(db: Database, tenant: str) -> None:
    """A model with room for tools, the version that makes calls, and a server of MCP."""
    runner = CALL_TOOL.fake_runner
    register(db, "wide", "fake", "auto", actor="t")
    register_version(
        db, model="tools", runner=runner, source=runner, digest=runner, dtype="auto", context_window=100, actor="t"
    )
    server = {"type": "mcp", "url": "https://mcp.example.com/mcp", "tools": {"find": ISSUES}}
    tools.create(db, tenant, "tracker", McpServer.model_validate(server), actor="t")


def line(custom_id: str, names: list[str]) -> dict[str, Any]:
    asked = {"model": "wide", "messages": [{"role": "user", "content": "2+3?"}], "server_tools": {"names": names}}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked}


def test_a_line_may_call_tools_and_one_with_an_unknown_tool_fails_alone(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    batch = make(openai, [line("good", ["calculator"]), line("bad", ["gone"])])
    (job,) = wait_for(lambda: api.get("/v1/jobs").json()["data"], "the job of the line")
    worker = TurnWorker(db, redis_client, api, job["id"])
    worker.say("answer", CALL)
    worker.call("answer:1", "5")
    held = worker.say("answer:2", "Five.")
    assert held.payload["input"]["messages"][-1]["content"] == "5"
    done = wait_for_status(openai, batch, "completed")
    (good,), (bad,) = read(openai, done.output_file_id), read(openai, done.error_file_id)
    message = good["response"]["body"]["choices"][0]["message"]
    assert (good["custom_id"], message["content"], message.get("tool_calls")) == ("good", "Five.", None)
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("bad", 404)
    assert bad["response"]["body"]["error"]["param"] == "server_tools.names[0]"
    shown = api.get(f"/v1/jobs/{job['id']}").json()
    assert (shown["service_class"], len(shown["steps"])) == ("batch", 3)


def only_job(api: httpx2.Client) -> str:
    (job,) = wait_for(lambda: api.get("/v1/jobs").json()["data"], "the job of the line")
    return str(job["id"])


def test_a_line_of_responses_calls_servers_of_mcp(
    db: Database, tenant: str, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    free = {"type": "mcp", "server_label": "tracker", "require_approval": "never"}
    asked: dict[str, Any] = {"model": "wide", "input": "Which is open?"}
    answer = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    lines = [
        {"custom_id": "free", "body": asked | {"tools": [free]}},
        {"custom_id": "gone", "body": asked | {"tools": [free | {"server_label": "gone"}]}},
    ]
    url = "/v1/responses"
    batch = make(openai, [{"method": "POST", "url": url, **one} for one in lines], endpoint=url)
    worker = TurnWorker(db, redis_client, api, only_job(api))
    worker.say("answer", "Let me look.\n", FIND)
    worker.call("answer:1", "Number 7.")
    (stored,) = tools.list_tools(db, tenant)
    tools.delete(db, tenant, stored.id, actor="t")
    worker.say("answer:2", "Seven.")
    done = wait_for_status(openai, batch, "completed")
    (good,), (bad,) = read(openai, done.output_file_id), read(openai, done.error_file_id)
    body = good["response"]["body"]
    listed, said, called, last = body["output"]
    assert [one["name"] for one in listed["tools"]] == ["find"], "as it was when the line became a job"
    assert (called["server_label"], called["name"], called["output"]) == ("tracker", "find", "Number 7.")
    assert [one["content"][0]["text"] for one in (said, last)] == ["Let me look.", "Seven."]
    assert body["service_tier"] == "flex"
    assert (bad["response"]["status_code"], bad["response"]["body"]["error"]["param"]) == (404, "tools[0].server_label")
    assert openai.responses.retrieve(body["id"]).to_dict()["output"] == body["output"]
    wrong = {"custom_id": "answer", "method": "POST", "url": url, "body": asked | {"input": [answer], "tools": [free]}}
    failed = wait_for_status(openai, make(openai, [wrong], endpoint=url), "failed")
    assert failed.errors.data[0].param == "body.input[0].approval_request_id"  # type: ignore[union-attr,index] # a batch that failed has errors


def test_a_line_of_messages_has_the_blocks_of_each_turn(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    url, asked = "/v1/messages", {"model": "wide", "max_tokens": 64, "messages": [{"role": "user", "content": "2+3?"}]}
    body = asked | {"server_tools": {"names": ["calculator"]}}
    batch = make(openai, [{"custom_id": "a", "method": "POST", "url": url, "body": body}], endpoint=url)
    worker = TurnWorker(db, redis_client, api, only_job(api))
    worker.say("answer", "Let me count.\n", CALL)
    worker.call("answer:1", "5")
    worker.say("answer:2", "Five.")
    (good,) = read(openai, wait_for_status(openai, batch, "completed").output_file_id)
    said, use, result, last = good["response"]["body"]["content"]
    assert (said["text"], last["text"]) == ("Let me count.", "Five.")
    assert (use["type"], use["name"], use["input"]) == ("mcp_tool_use", "calculator", {"expression": "2+3"})
    assert (result["tool_use_id"], result["content"][0]["text"]) == (use["id"], "5")

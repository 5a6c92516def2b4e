"""Messages whose model calls tools of the server, asked by Anthropic's client, whole and streamed."""

from typing import Any

import httpx2
import pytest
import redis
from anthropic import Anthropic

from headrace.store.db.database import Database
from tests.producer_api.calling import error_of
from tests.producer_api.turn_worker import TurnWorker, add_weather

CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
ASKED: Any = {
    "model": "wide",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
    "extra_body": {"server_tools": {"names": ["weather"]}},
}


@pytest.fixture(autouse=True)
def weather(db: Database, tenant: str) -> None:
    add_weather(db, tenant)


def test_the_blocks_of_each_turn_and_its_calls_are_the_same_whole_and_streamed(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, client: Anthropic
) -> None:
    key = {"Idempotency-Key": "once"}
    with client.beta.messages.create(**ASKED, extra_headers=key, stream=True) as stream:
        worker = TurnWorker(db, redis_client, api, stream.response.headers["X-Job-Id"])
        worker.say("answer", "Let me look.\n", CALL)
        worker.call("answer:1", "Error: no", is_error=True)
        worker.say("answer:2", "I do ", "not know.")
        events: list[Any] = list(stream)
    whole = client.beta.messages.create(**ASKED, extra_headers=key)
    said, use, result, last = [block.to_dict() for block in whole.content]
    assert (said["text"], last["text"], whole.stop_reason) == ("Let me look.", "I do not know.", "end_turn")
    assert (use["type"], use["name"], use["server_name"]) == ("mcp_tool_use", "weather", "headrace")
    assert use["input"] == {"city": "Rome"}
    assert (result["type"], result["tool_use_id"], result["is_error"]) == ("mcp_tool_result", use["id"], True)
    begun = [event.content_block.to_dict() for event in events if event.type == "content_block_start"]
    assert [block["type"] for block in begun] == ["text", "mcp_tool_use", "mcp_tool_result", "text"]
    assert begun[2] == result
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    assert "".join(delta.partial_json for delta in deltas if delta.type == "input_json_delta") == '{"city": "Rome"}'
    assert "".join(delta.text for delta in deltas if delta.type == "text_delta") == "Let me look.I do not know."
    assert [event.index for event in events if event.type == "content_block_stop"] == [0, 1, 2, 3]
    turns: Any = [
        *ASKED["messages"],
        {"role": "assistant", "content": [block.to_dict() for block in whole.content]},
        {"role": "user", "content": "Why?"},
    ]
    sent = api.post("/v1/messages/count_tokens", json={"model": "wide", "messages": turns})
    assert sent.status_code == 200, sent.text


def test_tools_of_the_caller_do_not_go_with_those_of_the_server(api: httpx2.Client) -> None:
    body = {**ASKED, "tools": [{"name": "f", "input_schema": {"type": "object"}}]} | ASKED["extra_body"]
    del body["extra_body"]
    refused = api.post("/v1/messages", json=body)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "tools")

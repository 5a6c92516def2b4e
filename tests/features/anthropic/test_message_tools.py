"""Tools of the Messages API, asked by Anthropic's client of models that write calls in each of the styles."""

import json
from typing import Any

import httpx2
import pytest
import redis
from anthropic import Anthropic

from headrace.features.anthropic.message_answer import MessageAnswer
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from tests.features.openai.test_tools import SAID, TWICE, agents, register_styles
from tests.producer_api.scripted_worker import ScriptedWorker

TOOLS: Any = [
    {
        "name": "get_weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "cache_control": {"type": "ephemeral"},
    },
    {"type": "custom", "name": "now", "description": "The time", "input_schema": {"type": "object"}},
]
QUESTION: Any = [{"role": "user", "content": "Is it warm in Oslo?"}]
ASKED: Any = {"max_tokens": 64, "messages": QUESTION, "tools": TOOLS}


@pytest.fixture
def workers(db: Database, redis_client: redis.Redis) -> dict[str, ScriptedWorker]:
    return register_styles(db, redis_client)


def test_a_round_whole_and_streamed(
    client: Anthropic, workers: dict[str, ScriptedWorker], subtests: pytest.Subtests
) -> None:
    with agents(workers, "I look.\n"):
        for model in workers:
            with subtests.test(model):
                whole = client.messages.create(model=model, **ASKED)
                with client.messages.stream(model=model, **ASKED) as stream:
                    parts = [event.partial_json for event in stream if event.type == "input_json"]
                    streamed = stream.get_final_message()
                for message in (whole, streamed):
                    said, use = message.content
                    assert (said.type, said.text) == ("text", "I look."), "and not a part of the call"
                    assert (use.type, use.name, use.input) == ("tool_use", "get_weather", {"city": "Oslo"})
                    assert use.id.startswith("toolu_")
                    assert message.stop_reason == "tool_use"
                assert len(parts) > 2, "the input comes as it is written"
                assert json.loads("".join(parts)) == {"city": "Oslo"}
                result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "cold"}]}
                answered: Any = [*QUESTION, streamed.to_param(), {"role": "user", "content": [result]}]
                again = client.messages.create(model=model, **ASKED | {"messages": answered})
                assert [block.text for block in again.content if block.type == "text"] == ["It is cold"]
                assert again.stop_reason == "end_turn"


def test_results_and_failures_reach_the_model(
    api: httpx2.Client, workers: dict[str, ScriptedWorker], db: Database, tenant: str
) -> None:
    uses = [{"type": "tool_use", "id": each, "name": "now", "input": {"at": "ö"}} for each in ("t1", "t2")]
    results = [
        {"type": "tool_result", "tool_use_id": "t2", "content": "no such place", "is_error": True},
        {"type": "tool_result", "tool_use_id": "t1"},
        {"type": "text", "text": "And?"},
    ]
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    turns = [*QUESTION, {"role": "assistant", "content": [thought, *uses]}, {"role": "user", "content": results}]
    with workers["plain"].serve(lambda _: ["ok"]):
        answer = api.post("/v1/messages", json={"model": "plain", **ASKED, "messages": turns})
    given = jobs.get(db, tenant, answer.headers["x-job-id"]).payload["input"]["messages"]
    assert [turn["role"] for turn in given] == ["user", "assistant", "tool", "tool", "user"]
    assert [call["function"]["arguments"] for call in given[1]["tool_calls"]] == ['{"at": "ö"}'] * 2
    assert [(turn["tool_call_id"], turn["content"]) for turn in given[2:4]] == [
        ("t2", "Error: no such place"),
        ("t1", ""),
    ]


def test_the_choice_reaches_the_job(
    api: httpx2.Client, workers: dict[str, ScriptedWorker], db: Database, tenant: str
) -> None:
    named = {"type": "function", "function": {"name": "now"}}
    asked: list[tuple[Any, Any, Any]] = [
        ({"type": "auto"}, "auto", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "any", "disable_parallel_tool_use": False}, "required", True),
        ({"type": "tool", "name": "now"}, named, None),
        ({"type": "none"}, "none", None),
    ]
    with workers["plain"].serve(lambda _: ["ok"]):
        for choice, expected, is_parallel in asked:
            answer = api.post("/v1/messages", json={"model": "plain", **ASKED, "tool_choice": choice})
            given = jobs.get(db, tenant, answer.headers["x-job-id"]).payload["input"]
            assert (given["tool_choice"], given.get("parallel_tool_calls")) == (expected, is_parallel)


def test_the_blocks_do_not_depend_on_the_pieces(
    api: httpx2.Client, workers: dict[str, ScriptedWorker], db: Database, tenant: str
) -> None:
    said = f"First.\n{TWICE}\nThen ☂."
    with workers["plain"].serve(lambda _: [said]):
        answer = api.post("/v1/messages", json={"model": "plain", **ASKED})
    whole = answer.json()["content"]
    assert [(block["type"], block.get("text")) for block in whole] == [
        ("text", "First."),
        ("tool_use", None),
        ("tool_use", None),
        ("text", "Then ☂."),
    ]
    job = jobs.get(db, tenant, answer.headers["x-job-id"])
    for size in (1, 2, 3, 7, len(said)):
        built = MessageAnswer(job)
        pieces = [said[start : start + size] for start in range(0, len(said), size)]
        events = [event for piece in pieces for event in built.pieces(piece)] + built.closing(job)
        assert put_together(events) == whole, size


def put_together(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks of the events, which must begin and end one after the other."""
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert (is_open, event["index"]) == (False, len(blocks))
                is_open = True
                blocks.append({**event["content_block"], "parts": ""})
            case "content_block_delta":
                assert (is_open, event["index"]) == (True, len(blocks) - 1)
                blocks[-1]["parts"] += event["delta"].get("text") or event["delta"].get("partial_json")
            case "content_block_stop":
                assert (is_open, event["index"]) == (True, len(blocks) - 1)
                is_open = False
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    assert not is_open
    for block in blocks:
        parts = block.pop("parts")
        block |= {"text": parts} if block["type"] == "text" else {"input": json.loads(parts)}
    return blocks


def test_an_input_that_the_token_limit_cuts_has_what_is_complete(
    client: Anthropic, workers: dict[str, ScriptedWorker], db: Database, tenant: str
) -> None:
    asked = ASKED | {"tool_choice": {"type": "tool", "name": "get_weather"}}
    with client.messages.stream(model="plain", **asked) as stream:
        worker = workers["plain"]
        attempt = worker.claim(jobs.list_jobs(db, tenant)[0].id)
        worker.say(attempt, SAID["plain"][:-3])
        worker.succeed(attempt, "length")
        streamed = stream.get_final_message()
    (use,) = streamed.content
    assert (use.type, use.name, use.input, streamed.stop_reason) == ("tool_use", "get_weather", {}, "max_tokens")
    job = jobs.get(db, tenant, attempt.claim.job_id)
    assert MessageAnswer(job).full_answer(job)["content"][0]["input"] == {}


def test_half_the_head_of_a_call_is_no_text(
    client: Anthropic, workers: dict[str, ScriptedWorker], db: Database, tenant: str
) -> None:
    with client.messages.stream(model="plain", **ASKED) as stream:
        worker = workers["plain"]
        attempt = worker.claim(jobs.list_jobs(db, tenant)[0].id)
        worker.say(attempt, '{"name": "get_wea')
        worker.succeed(attempt, "length")
        streamed = stream.get_final_message()
    assert (streamed.content, streamed.stop_reason) == ([], "max_tokens")
    job = jobs.get(db, tenant, attempt.claim.job_id)
    assert MessageAnswer(job).full_answer(job)["content"] == []

"""Streams of chats whose model calls tools of the server, read by the official client."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import redis
from openai import OpenAI

from headrace.store.db.database import Database
from tests.producer_api.turn_worker import TurnWorker, add_weather

CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
BODY: Any = {
    "model": "wide",
    "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
    "extra_body": {"server_tools": {"names": ["weather"]}},
    "stream": True,
}

NewWorker = Callable[[str], TurnWorker]


@pytest.fixture(autouse=True)
def weather(db: Database, tenant: str) -> None:
    add_weather(db, tenant)


@pytest.fixture
def new_worker(db: Database, redis_client: redis.Redis, api: httpx2.Client) -> NewWorker:
    return lambda job_id: TurnWorker(db, redis_client, api, job_id)


def content_of(chunks: list[Any]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def told(chunks: list[Any]) -> list[dict[str, Any]]:
    """What the chunks say about calls, in order."""
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert all(delta.tool_calls is None for delta in deltas)
    return [one for delta in deltas for one in getattr(delta, "server_tool_calls", None) or ()]


def until(chunks: Iterator[Any], is_last: Callable[[list[Any]], bool]) -> list[Any]:
    """Read up to the first chunk with which this is true."""
    seen = [next(chunks)]
    while not is_last(seen):
        seen.append(next(chunks))
    return seen


def test_a_stream_has_the_text_of_each_turn_and_says_which_tools_run(openai: OpenAI, new_worker: NewWorker) -> None:
    """A second stream of the same job, when it has ended, has the same text and calls."""
    key = {"Idempotency-Key": "once"}
    with openai.chat.completions.create(**BODY, extra_headers=key, stream_options={"include_usage": True}) as stream:
        worker, chunks = new_worker(stream.response.headers["X-Job-Id"]), iter(stream)
        worker.say("answer", "Let me ", "look.", f"\n{CALL[:20]}", f"{CALL[20:]}\n{CALL}")
        seen = until(chunks, lambda seen: len(told(seen)) > 0)
        assert content_of(seen) == "Let me look."
        worker.call("answer:2", "Error: no", is_error=True)
        worker.call("answer:1", "22 degrees")
        seen += until(chunks, lambda seen: len(told(seen)) == 2)
        worker.say("answer:3", "It is ", "warm.")
        seen += list(chunks)
    assert content_of(seen) == "Let me look.\nIt is warm."
    first, second, *results = told(seen)
    assert (first["index"], first["type"], second["index"]) == (0, "function", 1)
    assert first["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert results == [
        {"index": 0, "status": "completed", "output": "22 degrees"},
        {"index": 1, "status": "failed", "output": "Error: no"},
    ]
    assert seen[-2].choices[0].finish_reason == "stop"
    assert seen[-1].usage.completion_tokens == 6
    with openai.chat.completions.create(**BODY, extra_headers=key, stream_options={"include_usage": True}) as stream:
        again = list(stream)
    assert (content_of(again), told(again)) == (content_of(seen), told(seen))


def test_the_helper_of_the_client_joins_what_is_told_of_a_call(
    openai: OpenAI, api: httpx2.Client, new_worker: NewWorker
) -> None:
    given = {name: value for name, value in BODY.items() if name != "stream"}
    with openai.chat.completions.stream(**given) as stream:
        (job,) = api.get("/v1/jobs").json()["data"]
        worker = new_worker(job["id"])
        worker.say("answer", CALL)
        worker.call("answer:1", "22 degrees")
        worker.say("answer:2", "Warm.")
        (choice,) = stream.get_final_completion().choices
    message: Any = choice.message.to_dict()
    (call,) = message["server_tool_calls"]
    assert (message["content"], call["function"]["name"], call["output"]) == ("Warm.", "weather", "22 degrees")


def test_a_stream_that_begins_late_or_outlives_a_worker_has_each_text_once(
    openai: OpenAI, new_worker: NewWorker
) -> None:
    key = {"Idempotency-Key": "once"}
    with openai.chat.completions.create(**BODY, extra_headers=key) as stream:
        worker, chunks = new_worker(stream.response.headers["X-Job-Id"]), iter(stream)
        worker.lose("answer", "Let me ")
        assert content_of(until(chunks, lambda seen: content_of(seen) == "Let me")) == "Let me"
        worker.say("answer", "Let me ", "look.\n", CALL)
        worker.call("answer:1", "22 degrees")
        with openai.chat.completions.create(**BODY, extra_headers=key) as late:
            second = iter(late)
            early = until(second, lambda seen: len(told(seen)) == 2)
            assert content_of(early) == "Let me look."
            worker.say("answer:2", "It is warm.")
            assert content_of(list(second)) == "\nIt is warm."
        assert content_of(list(chunks)) == " look.\nIt is warm."

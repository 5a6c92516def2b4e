"""The turns of a job with server tools are in order, whatever comes first: text from the hub, or ends from Postgres."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.producer_api.runtime import Runtime
from headrace.producer_api.streaming import turns
from headrace.producer_api.streaming.job_events import Restarted, TextPiece
from headrace.producer_api.streaming.turns import CallEnded, TurnEnded, follow_turns
from headrace.store.jobs.flow_turns import TurnStep
from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import JobState
from headrace.store.streams.stream_log import StreamCursor

CALLED = [{"id": "call_0", "function": {"name": "f", "arguments": "{}"}}]
STEPS = [
    TurnStep("a", 0, "generate", JobState.SUCCEEDED, 2, {"text": "one two", "tool_calls": CALLED}),
    TurnStep("b", 1, "call_tool", JobState.SUCCEEDED, 1, {"text": "22", "is_error": False}),
    TurnStep("c", 2, "generate", JobState.RUNNING, 3, None),
]


def piece(epoch: int, seq: int, text: str) -> TextPiece:
    return TextPiece(StreamCursor(epoch, seq), text)


async def told(events: Sequence[Any], monkeypatch: pytest.MonkeyPatch, steps: Sequence[TurnStep] = STEPS) -> list[Any]:
    async def follow(_runtime: Runtime, _job: Job) -> AsyncGenerator[Any]:
        for event in events:
            yield event

    def read_steps(*_given: Any, first: int, most: int) -> Sequence[TurnStep]:
        return steps[first:most]

    monkeypatch.setattr(turns, "follow", follow)
    monkeypatch.setattr(turns, "read_steps", read_steps)
    payload = {"steps": [{"name": "answer", "server_tools": {"names": ["f"]}}]}
    job = cast(Job, SimpleNamespace(id="job_1", tenant_id="tnt_1", payload=payload))
    runtime = cast(Runtime, SimpleNamespace(db=None, settings=SimpleNamespace(max_steps=16)))
    return [event async for event in follow_turns(runtime, job)]


def test_text_of_a_turn_never_follows_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of the second turn says that the first one has ended, and what is late of that is left out."""
    new, late = piece(3, 1, "three"), [piece(2, 2, "two"), Restarted(StreamCursor(2, 0), 2, 0, "")]
    seen = asyncio.run(told([piece(1, 1, "one "), new, *late], monkeypatch))
    call = turns.TurnCall(0, "call_0", "b", "f", "{}")
    assert seen == [TurnEnded(STEPS[0].output or {}, (call,)), CallEnded(call, "22", False), new]


def test_calls_are_numbered_through_all_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_again = TurnStep("c", 2, "generate", JobState.SUCCEEDED, 3, {"text": "three", "tool_calls": CALLED})
    steps = [*STEPS[:2], asked_again, TurnStep("d", 3, "call_tool", JobState.SUCCEEDED, 1, {"text": "33"})]
    seen = asyncio.run(told([piece(4, 1, "four")], monkeypatch, steps))
    assert [one.call.number for one in seen if isinstance(one, CallEnded)] == [0, 1]


def test_a_turn_that_runs_gives_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is told of a turn that was lost, nor of a call that runs."""
    running = [TurnStep("a", 0, "generate", JobState.RUNNING, 2, None)]
    events = [piece(1, 1, "one"), Restarted(StreamCursor(2, 0), 2, 0, ""), piece(2, 1, "one")]
    assert asyncio.run(told(events, monkeypatch, running)) == events
    called = [STEPS[0], TurnStep("b", 1, "call_tool", JobState.RUNNING, 1, None)]
    assert [type(one) for one in asyncio.run(told(events[:1], monkeypatch, called))] == [TurnEnded]

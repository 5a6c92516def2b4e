"""Events of jobs with several choices, logprobs or restored values, and of turns that begin with calls. No services."""

from types import SimpleNamespace
from typing import Any

import pytest

from headrace.producer_api.server.errors import Draining
from headrace.producer_api.streaming import turns
from headrace.producer_api.streaming.job_events import KeptText, Restarted, TextPiece, follow
from headrace.producer_api.streaming.turns import (
    CallEnded,
    Told,
    TurnCall,
    TurnEnded,
    first_calls,
    has_turns,
    turn_events,
    turns_of,
)
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.answered_calls import first_steps
from headrace.store.jobs.flow_turns import TurnStep
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import Checkpoint, ChoiceEnd, ChoiceMark
from headrace.store.streams.stream_log import Frame, StreamCursor
from tests.producer_api.streaming.test_job_events import JOB_ID, JobRow, Story, read, runtime_of

ROWS: Any = tuple(((number, -0.5, ()),) for number in range(4))
MARKS = ChoiceMark(0), ChoiceMark(1), ChoiceMark(0, ChoiceEnd("stop", 1, 2)), ChoiceMark(1)


def running(epoch: int, **payload: Any) -> Any:
    return JobRow(state=JobState.RUNNING, epoch=epoch, attempt=epoch, num_deltas=0, output=None, payload=payload)


def checkpoint(kept: int, lineage: Any) -> Checkpoint:
    """The first deltas of four."""
    deltas = ("a", "b", "c", "d")[:kept]
    return Checkpoint(deltas, ((1,),) * kept, lineage, ROWS[:kept], MARKS[:kept])


async def first_events(job: Any, after: StreamCursor, *frames: Frame) -> list[Any]:
    """Return the events that these frames make."""
    runtime = runtime_of(Story((Checkpoint(),), ()), frames, [job] * 9)
    found: list[Any] = []
    async for event in follow(runtime, job, after):
        if event is None:
            break
        found.append(event)
    return found


async def test_what_a_new_attempt_kept_is_told_by_choice() -> None:
    start = Frame(JOB_ID, 2, 0, None, checkpoint=checkpoint(3, ((1, 0), (2, 2))))
    events = await first_events(
        running(2), StreamCursor(1, 4), start, Frame(JOB_ID, 2, 4, "e", (), None, ROWS[3], MARKS[3])
    )
    kept = {0: KeptText("a", ROWS[0]), 1: KeptText("b", ROWS[1])}
    restarted, third, fourth = events
    assert restarted == Restarted(StreamCursor(2, 2), 2, 2, "a", ROWS[0], kept)
    assert [restarted.kept_of(choice) for choice in (0, 1, 2)] == [kept[0], kept[1], KeptText()]
    assert third == TextPiece(StreamCursor(2, 3), "c", ROWS[2], MARKS[2])
    assert fourth == TextPiece(StreamCursor(2, 4), "e", ROWS[3], MARKS[3])
    assert [event.choice for event in (third, fourth, TextPiece(StreamCursor(1, 1), "x"))] == [0, 1, 0]


async def test_a_first_choice_without_text_is_told_as_empty() -> None:
    lineage = ((1, 0), (2, 1))
    start = Frame(JOB_ID, 2, 0, None, checkpoint=Checkpoint(("b",), ((1,),), lineage, (), (ChoiceMark(1),)))
    (restarted,) = await first_events(running(2), StreamCursor(1, 2), start)
    choices = {0: KeptText(), 1: KeptText("b")}
    assert restarted == Restarted(StreamCursor(2, 1), 2, 1, "", (), choices)


async def test_an_attempt_that_kept_everything_goes_on_without_a_word() -> None:
    start = Frame(JOB_ID, 2, 0, None, checkpoint=checkpoint(3, ((1, 0), (2, 3))))
    assert await first_events(running(2), StreamCursor(1, 3), start) == []


async def test_values_of_placeholders_are_put_back() -> None:
    vault = {"values": {"<EMAIL_1>": "ann@example.com"}}
    job = running(1, policy={"vault": vault})
    (piece,) = await first_events(job, StreamCursor(1, 0), Frame(JOB_ID, 1, 1, "to <EMAIL_1>."))
    assert piece.text == "to ann@example.com."


async def test_a_process_that_stops_says_so_and_a_strange_cursor_is_refused() -> None:
    runtime = runtime_of(Story((Checkpoint(),), ()), [None], [running(1)])
    runtime.draining.set()
    with pytest.raises(Draining):
        await read(runtime, running(1), StreamCursor(1, 0))
    with pytest.raises(InvalidRequest) as caught:
        follow(runtime, running(1), StreamCursor(2, 5))
    assert ("2-5" in caught.value.message, caught.value.param) == (True, "Last-Event-ID")


# Turns.


def call(number: int, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"id": f"call_{number}", "function": {"name": name, "arguments": arguments}}


def step(
    number: int, task: str = "call_tool", state: JobState = JobState.SUCCEEDED, epoch: int = 1, **output: Any
) -> TurnStep:
    return TurnStep(f"s{number}", number, task, state, epoch, output or None)


def test_calls_over_the_limit_have_no_step_and_are_not_told() -> None:
    turn = step(0, "generate", epoch=7, text="one", tool_calls=[call(0, "f", "1"), call(1, "g", "2"), call(2)])
    steps = [turn, step(1, text="a", is_error=True), step(2, other=1), step(3, "generate", text="two")]
    told = Told(num_calls=4)
    first, second = TurnCall(4, "call_0", "s1", "f", "1"), TurnCall(5, "call_1", "s2", "g", "2")
    assert turn_events(steps, told) == [
        TurnEnded(turn.output or {}, (first, second)),
        CallEnded(first, "a", True),
        CallEnded(second, "", False),
    ]
    assert (told.next, told.num_calls, told.epoch, [*told.open]) == (3, 6, 7, [])
    assert turn_events(steps[3:], told) == [], "the answer is no turn with calls"


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.FAILED, JobState.QUEUED])
def test_a_call_that_has_not_succeeded_ends_what_is_told(state: JobState) -> None:
    turn = step(0, "generate", text="one", tool_calls=[call(0), call(1)])
    told = Told()
    found = turn_events([turn, step(1, state=state, text="a"), step(2, text="b")], told)
    assert ([type(one) for one in found], told.next) == ([TurnEnded], 1)
    gap = Told()
    assert turn_events([step(1, text="a")], gap) == [], "the one before it was not read"


def flow(**payload: Any) -> Any:
    return SimpleNamespace(id="job_1", tenant_id="acme", payload=payload)


def test_a_job_begins_with_the_calls_that_were_approved(monkeypatch: pytest.MonkeyPatch) -> None:
    names = first_steps(2)
    body = [
        {"name": "answer", "server_tools": {"names": ["f"]}},
        *(
            {"name": name, "task": "call_tool", "input": {"tool": f"t{place}", "arguments": str(place)}}
            for place, name in enumerate(names)
        ),
    ]
    job = flow(steps=body, calls={"style": None})
    first, second = TurnCall(0, "", "", "t0", "0"), TurnCall(1, "", "", "t1", "1")
    assert (first_calls(job), has_turns(job), has_turns(flow(steps=body)), has_turns(flow())) == (
        (first, second),
        True,
        False,
        False,
    )
    asked: list[Any] = []

    def read_outputs(_db: object, tenant_id: str, job_id: str, wanted: Any) -> dict[str, Any]:
        asked.append((tenant_id, job_id, [*wanted]))
        return {names[0]: {"output": {"text": "22", "is_error": False}}, names[1]: {"output": None}}

    def read_steps(_db: object, tenant_id: str, job_id: str, base: str, **bounds: Any) -> list[TurnStep]:
        asked.append((tenant_id, job_id, base, bounds))
        return []

    monkeypatch.setattr(turns, "read_outputs", read_outputs)
    monkeypatch.setattr(turns, "read_steps", read_steps)
    nothing: Any = None
    assert turns_of(nothing, job) == [CallEnded(first, "22", False)]
    assert asked == [("acme", "job_1", [*names]), ("acme", "job_1", "answer", {"first": 0, "most": 256})]
    assert turns_of(nothing, flow(steps=body)) == []

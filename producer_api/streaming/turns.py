"""The events of a job whose model calls tools of the server: its text turn by turn, and the calls between the turns.

    text … │ TurnEnded, with its calls │ CallEnded, for each in order │ text of the next turn … │ Ended

A job may begin with calls: those of a response before it that were approved. Then their CallEnded come first.
Text comes from the hub as for every job. That a turn has ended, with its whole text, and what its calls returned, is
read in Postgres. So a reader gets each turn whole and in order, whenever it connects, and no text of a turn comes
behind its end. Calls that run side by side are told in their order, not in that of their ends. No HTTP.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from headrace.producer_api.runtime import Runtime
from headrace.producer_api.streaming.job_events import Event, Restarted, StepHappened, TextPiece, follow
from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.jobs.answered_calls import CALL_STEP, CALL_TASK, first_steps
from headrace.store.jobs.flow_turns import TurnStep, number_of, read_steps
from headrace.store.jobs.flow_values import read_outputs
from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import JobState
from headrace.store.streams.stream_log import StreamCursor
from headrace.store.tasks.generate import GENERATE
from headrace.store.tasks.turn_form import CALLS, TurnForm

_PATIENCE_S = 10.0
_RETRY_S = 0.25
MOST_STEPS = 256
"""More steps than this no job may have."""


@dataclass(frozen=True, slots=True)
class TurnCall:
    """A call that the server makes: the model's id for it, and the job that is its step.

    ``number``: counts the calls of the whole job, from 0.
    """

    number: int
    id: str
    job_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """A turn has ended with calls. ``output``: of its step, with the whole text."""

    output: Mapping[str, Any]
    calls: tuple[TurnCall, ...]


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call has returned this text."""

    call: TurnCall
    text: str
    is_error: bool


TurnEvent = TurnEnded | CallEnded


def has_turns(job: Job) -> bool:
    """Return True if the job's model may call tools of the server."""
    return CALLS in (job.payload or {})


def form_of_turns(job: Job) -> TurnForm:
    """Return how the text of the first turn stands."""
    return TurnForm.model_validate(job.payload[CALLS])


def _base_of(job: Job) -> str:
    """Return the name of the step whose model calls tools."""
    return next(str(step["name"]) for step in job.payload["steps"] if step.get("server_tools"))


def first_calls(job: Job) -> tuple[TurnCall, ...]:
    """Return the calls that a job begins with. They are steps of its request, so their ids are not known here."""
    steps = {str(step["name"]): step for step in job.payload["steps"] if step.get("task") == CALL_TASK}
    asked = [steps[name]["input"] for name in first_steps(len(steps)) if name in steps]
    return tuple(TurnCall(place, "", "", one["tool"], one["arguments"]) for place, one in enumerate(asked))


def turns_of(db: Database, job: Job) -> list[TurnEvent]:
    """Return the turns with calls of a job that has ended, and what the calls returned. Blocks. Raises CannotOpen."""
    if not has_turns(job):
        return []
    return _read(db, job, _base_of(job), _begin(job))


def _begin(job: Job) -> "Told":
    calls = first_calls(job)
    return Told(num_calls=len(calls), first=calls)


def _read(db: Database, job: Job, base: str, told: "Told") -> list[TurnEvent]:
    """Return what has ended and was not told yet. Blocks. Raises CannotOpen, Unavailable."""
    names = {call.number: CALL_STEP.format(call.number + 1) for call in told.first}
    found = read_outputs(db, job.tenant_id, job.id, names.values()) if names else {}
    steps = read_steps(db, job.tenant_id, job.id, base, first=told.next, most=MOST_STEPS)
    events: list[TurnEvent] = []
    while told.first and (output := (found.get(names[told.first[0].number]) or {}).get("output")) is not None:
        call, *told.first = told.first
        events.append(_ended(call, output))
    return events + turn_events(steps, told)


async def follow_turns(runtime: Runtime, job: Job) -> AsyncGenerator[Event | TurnEvent | None]:
    """Yield the job's events from its beginning. Raises as ``follow``."""
    turns = _TurnReader(runtime, job)
    async with aclosing(follow(runtime, job)) as events:
        async for event in events:
            if turns.is_behind(event):
                for told in await turns.read():
                    yield told
            if turns.takes(event):
                yield event


def turn_events(steps: Sequence[TurnStep], told: "Told") -> list[TurnEvent]:
    """Return the events of steps that no earlier call returned, and remember them as returned."""
    events: list[TurnEvent] = []
    for place, step in enumerate(steps):
        if step.number != told.next or step.state is not JobState.SUCCEEDED or step.output is None:
            break
        if step.task == GENERATE.name:
            calls = _calls(step, steps[place + 1 :], told.num_calls)
            if not calls:
                break  # the answer
            told.num_calls += len(calls)
            told.open = calls
            told.epoch = step.epoch
            events.append(TurnEnded(step.output, tuple(calls)))
        else:
            call, *told.open = told.open
            events.append(_ended(call, step.output))
        told.next += 1
    return events


def _ended(call: TurnCall, output: Mapping[str, Any]) -> CallEnded:
    return CallEnded(call, str(output.get("text", "")), bool(output.get("is_error")))


@dataclass(slots=True)
class Told:
    """What a reader was told: the number of the next step, the calls that are open, the epoch of the last turn.

    ``first``: the calls that the job begins with, whose results were not told.
    """

    next: int = 0
    num_calls: int = 0
    open: Sequence[TurnCall] = ()
    epoch: int = 0
    first: Sequence[TurnCall] = ()


def _calls(turn: TurnStep, behind: Sequence[TurnStep], num_before: int) -> list[TurnCall]:
    """Return the calls of a turn that have a step; those over the limit have none."""
    asked = (turn.output or {}).get("tool_calls") or ()
    made: list[TurnCall] = []
    for call, step in zip(asked, behind, strict=False):
        if step.task == GENERATE.name:
            break
        function = call["function"]
        made.append(TurnCall(num_before + len(made), call["id"], step.id, function["name"], function["arguments"]))
    return made


class _TurnReader:
    """State of one subscription."""

    def __init__(self, runtime: Runtime, job: Job) -> None:
        self._runtime = runtime
        self._job = job
        self._base = _base_of(job)
        self._told = _begin(job)
        self._first_steps = first_steps(self._told.num_calls)
        self._seen_epoch = 0

    def is_behind(self, event: Event | None) -> bool:
        """Return True if Postgres may have an end that comes before this event."""
        match event:
            case StepHappened(event=happened) if happened.kind == "step_finished":
                name = str(happened.detail.get("step"))
                number = number_of(name, self._base)
                return name in self._first_steps or (number is not None and number >= self._told.next)
            case TextPiece(cursor=StreamCursor(epoch=epoch)) | Restarted(cursor=StreamCursor(epoch=epoch)):
                is_new = epoch > self._seen_epoch
                self._seen_epoch = max(self._seen_epoch, epoch)
                return is_new
            case _:
                return False

    def takes(self, event: Event | None) -> bool:
        """Return False for text of a turn that has ended."""
        return not isinstance(event, TextPiece | Restarted) or event.cursor.epoch > self._told.epoch

    async def read(self) -> list[TurnEvent]:
        """Return what has ended. Failures are tolerated for ``_PATIENCE_S``."""
        began = time.monotonic()
        while True:
            try:
                return await run_in_threadpool(_read, self._runtime.db, self._job, self._base, self._told)
            except Unavailable:
                if time.monotonic() - began > _PATIENCE_S:
                    raise
                await asyncio.sleep(_RETRY_S)

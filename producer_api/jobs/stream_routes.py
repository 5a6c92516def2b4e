"""Route of the native stream: a job's events as server-sent events, from any cursor, also after its end."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from headrace.producer_api.access.auth import JobsReader
from headrace.producer_api.http.requests import RuntimeOf
from headrace.producer_api.jobs.job_routes import JobId
from headrace.producer_api.jobs.job_views import job_object
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.server.sse import PING, EventStream, Heartbeat, event
from headrace.producer_api.streaming.job_events import (
    Ended,
    Event,
    Events,
    FormatLogprobs,
    Progressed,
    Queued,
    Restarted,
    Started,
    StepHappened,
    TextPiece,
    follow,
    has_everything,
    logprob_formatter,
)
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.jobs import Job, JobEvent
from headrace.store.streams.checkpoints import ChoiceMark
from headrace.store.streams.stream_log import StreamCursor
from headrace.store.tasks.registry import TASKS

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=DOCUMENTED)

_EXAMPLE = (
    "id: 0-0\nevent: job.queued\ndata: {...}\n\n"
    'id: 1-0\nevent: job.started\ndata: {"attempt":1}\n\n'
    'id: 1-1\nevent: job.delta\ndata: {"text":"Hel"}\n\n'
    "id: 1-2\nevent: job.succeeded\ndata: {...the job...}\n\n"
)


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses={
        200: {"description": "The stream", "content": {"text/event-stream": {"example": _EXAMPLE}}},
        204: {"description": "The cursor is that of the last event: there is nothing more, do not reconnect"},
    },
    summary="Stream a job",
)
async def stream_events(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsReader,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", description="the last id received")] = None,
    starting_after: Annotated[str | None, Query(description="the same, for clients that cannot set headers")] = None,
) -> Response:
    """Send `job.queued`, `job.started`, `job.delta`, ... and end with the terminal event, which carries the job.

    If a worker is lost, the next one continues the text. If it cannot, because not all sent deltas were saved,
    `job.restarted` gives the number of deltas that are still valid (`kept`) and their text.
    If the job requests logprobs, `job.delta` has those of its tokens, in the format of chat streams.
    Of a task that makes sound `job.delta` has `audio` in place of the text: its next sentence, FLAC in base64.
    If the job has several answers, `job.delta` has the number of its `choice`, and the last one of a choice the
    `finish_reason`; its text may be empty. `job.restarted` has the valid texts by choice in `choices`.
    A job of several steps also has `step.started` and `step.finished`, with the step's `name` and `job_id`, and its
    `attempt`, or its `state` and `usage`; its `job.delta` are those of the step with the answer. If a call of a tool
    needs an approval, it has `approval.requested` with the `approval_id` and the `tool`, and `approval.decided`.
    A task that tells how far it is has `job.progress`, with `done` of `total` and a `message`; it is not repeated.
    If the connection closes before the terminal event, reconnect with the last id.
    """
    after = _cursor(last_event_id or starting_after)
    job = await runtime.reader.get(principal.tenant_id, job_id)
    if has_everything(job, after):
        return Response(status_code=204)
    await runtime.streams.enter(request)
    events = follow(runtime, job, after)
    return EventStream(
        _encoded(events, runtime.settings.stream_ping_s, await logprob_formatter(runtime, job), _delta_field(job)),
        while_open=runtime.metrics.streams_open.track_inprogress,
        headers={"X-Job-Id": job.id, "X-Model-Version": str(job.model_version)},
    )


def _cursor(text: str | None) -> StreamCursor | None:
    if not text:
        return None
    try:
        return StreamCursor.parse(text)
    except ValueError as error:
        raise InvalidRequest(str(error), param="Last-Event-ID") from error


def _delta_field(job: Job) -> str:
    task = TASKS.get(job.task)
    return "text" if task is None else task.delta_field


async def _encoded(
    events: Events, ping_s: float, format_logprobs: FormatLogprobs | None, delta_field: str
) -> AsyncGenerator[bytes]:
    heartbeat = Heartbeat(ping_s)
    async with aclosing(events):
        async for happened in events:
            if happened is not None:
                heartbeat.beat()
                yield _encode(happened, format_logprobs, delta_field)
            elif heartbeat.is_due():
                yield PING


def _encode(happened: Event, format_logprobs: FormatLogprobs | None, delta_field: str) -> bytes:
    cursor = str(happened.cursor)
    match happened:
        case Queued(job=job):
            return event("job.queued", cursor, {"id": job.id, "created_at": int(job.created_at.timestamp())})
        case Started(attempt=attempt):
            return event("job.started", cursor, {"attempt": attempt})
        case Restarted(attempt=attempt, kept=kept, text=text, choices=choices):
            texts = {"choices": {str(choice): one.text for choice, one in choices.items()}} if choices else {}
            known = {"text": text} if delta_field == "text" else {}
            return event("job.restarted", cursor, {"attempt": attempt, "kept": kept, **known, **texts})
        case TextPiece(text=text, logprobs=logprobs, mark=mark):
            likely = {"logprobs": format_logprobs(logprobs)} if format_logprobs is not None and logprobs else {}
            return event("job.delta", cursor, {delta_field: text, **_marked(mark), **likely})
        case Progressed() | StepHappened():
            return event(*_beside(happened, cursor))
        case Ended(job=job):
            return event(f"job.{job.state}", cursor, job_object(job).model_dump(mode="json"))


def _beside(happened: Progressed | StepHappened, cursor: str) -> tuple[str, str, Mapping[str, Any]]:
    """Return name, id and data of an event beside the text of the answer."""
    if isinstance(happened, Progressed):
        told = asdict(happened.progress)
        return "job.progress", cursor, {name: value for name, value in told.items() if value is not None}
    return happened.event.kind.replace("_", "."), cursor, _step(happened.event)


def _step(happened: JobEvent) -> Mapping[str, Any]:
    """Return the data of ``step.started`` (name, job_id, attempt), ``step.finished`` (name, job_id, state, usage) or of
    an approval (name, job_id, approval_id, tool, and when it is decided its state).
    """
    told = {"name": happened.detail.get("step"), "job_id": happened.detail.get("job")}
    if happened.kind in ("approval_requested", "approval_decided"):
        state = {"state": happened.detail["state"]} if "state" in happened.detail else {}
        return told | {"approval_id": happened.detail["approval"], "tool": happened.detail["tool"]} | state
    if happened.kind == "step_started":
        return told | {"attempt": happened.detail.get("attempt", 1)}
    code = happened.detail.get("code")
    ended = {"state": happened.detail.get("state"), "usage": happened.detail.get("usage")}
    return told | ended | ({} if code is None else {"code": code})


def _marked(mark: ChoiceMark | None) -> Mapping[str, Any]:
    if mark is None:
        return {}
    return {"choice": mark.choice} | ({} if mark.end is None else {"finish_reason": mark.end.finish_reason})

"""The native stream: a job's events as server-sent events, from any cursor, while it runs and after."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from producer_api.access.auth import JobsReader
from producer_api.http.requests import RuntimeOf
from producer_api.jobs.job_routes import JobId
from producer_api.jobs.job_views import job_object
from producer_api.server.errors import DOCUMENTED
from producer_api.server.sse import PING, EventStream, Heartbeat, event
from producer_api.streaming.job_events import (
    Ended,
    Event,
    Events,
    Queued,
    Restarted,
    Started,
    TextPiece,
    follow,
    has_everything,
)
from producer_api.streaming.logprob_format import Spell, spelling_of
from store.errors import InvalidRequest
from store.streams.stream_log import Cursor

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
    summary="Follow a job",
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

    A worker that is lost goes unnoticed: the next one continues the text. Where it cannot, because what had been sent
    was not known to it, `job.restarted` says how many of the deltas so far still count (`kept`) and what text they are.
    Of a job that asks for logprobs, `job.delta` has those of its tokens, as the chat's streams have them.
    A connection that closes without a terminal event was cut; come back with the last id.
    """
    after = _cursor(last_event_id or starting_after)
    job = await runtime.reader.get(principal.tenant_id, job_id)
    if has_everything(job, after):
        return Response(status_code=204)
    await runtime.streams.enter(request)
    events = follow(runtime, job, after)
    return EventStream(
        _encoded(events, runtime.settings.stream_ping_s, await spelling_of(runtime, job)),
        open_streams=runtime.metrics.streams_open,
        headers={"X-Job-Id": job.id, "X-Model-Version": str(job.model_version)},
    )


def _cursor(text: str | None) -> Cursor | None:
    if not text:
        return None
    try:
        return Cursor.parse(text)
    except ValueError as error:
        raise InvalidRequest(str(error), param="Last-Event-ID") from error


async def _encoded(events: Events, ping_s: float, spell: Spell | None) -> AsyncGenerator[bytes]:
    heartbeat = Heartbeat(ping_s)
    async with aclosing(events):
        async for happened in events:
            if happened is not None:
                heartbeat.beat()
                yield _encode(happened, spell)
            elif heartbeat.is_due():
                yield PING


def _encode(happened: Event, spell: Spell | None) -> bytes:
    cursor = str(happened.cursor)
    match happened:
        case Queued(job=job):
            return event("job.queued", cursor, {"id": job.id, "created_at": int(job.created_at.timestamp())})
        case Started(attempt=attempt):
            return event("job.started", cursor, {"attempt": attempt})
        case Restarted(attempt=attempt, kept=kept, text=text):
            return event("job.restarted", cursor, {"attempt": attempt, "kept": kept, "text": text})
        case TextPiece(text=text, logprobs=logprobs):
            likely = {"logprobs": spell(logprobs)} if spell is not None and logprobs else {}
            return event("job.delta", cursor, {"text": text, **likely})
        case Ended(job=job):
            return event(f"job.{job.state}", cursor, job_object(job).model_dump(mode="json"))

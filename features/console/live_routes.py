"""The route of live figures: what waits, what runs, how fast. Without ``queues:admin``: the own share."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.console.live_objects import LiveSnapshot
from headrace.features.console.live_poll import LivePoll
from headrace.producer_api.access.auth import JobsReader, may
from headrace.producer_api.http.requests import RuntimeOf
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.server.sse import EventStream

router = APIRouter(prefix="/v1/live", tags=["live"], responses=DOCUMENTED)

_STREAM = "text/event-stream"
_EXAMPLE = (
    'event: history\ndata: {"step_s":5.0,"points":[...]}\n\n'
    'event: live\ndata: {"at":1795600000.1,"share":"all","queues":[...],"workers":[...]}\n\n'
)


async def _poll(request: Request) -> LivePoll:
    poll: LivePoll = request.app.state.works[LivePoll]
    return poll


@router.get(
    "",
    response_model=LiveSnapshot,
    responses={200: {"description": "Once, or as a stream", "content": {_STREAM: {"example": _EXAMPLE}}}},
    summary="Queues and workers now",
)
async def get_live(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsReader,
    poll: Annotated[LivePoll, Depends(_poll)],
    accept: Annotated[str, Header(description="`text/event-stream` asks for the stream")] = "",
) -> Response:
    """Return each queue with its backlog, each worker with the jobs that it holds, and the last ten minutes: tokens per
    second, time to the first token, occupancy.

    With `Accept: text/event-stream` it is a stream without an end: an event `live` with the state once a second, and
    `history` when it has changed. A key without `queues:admin` gets its own tenant's share.
    """
    audience = None if may(principal, "queues:admin") else principal.tenant_id
    if _STREAM not in accept:
        return Response(await poll.snapshot(audience), media_type="application/json")
    await runtime.streams.enter(request)
    return EventStream(poll.follow(audience), while_open=runtime.metrics.streams_open.track_inprogress)

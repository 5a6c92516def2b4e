"""Routes of dead letters: list jobs that failed for good, and replay them after the cause is fixed."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.jobs.job_routes import JobId
from headrace.producer_api.jobs.replay import ReplayedJob, replay, replay_many
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.db.database import Database
from headrace.store.jobs import dead_letters
from headrace.store.jobs.dead_letters import DeadLetter
from headrace.store.payloads.strict_model import Strict

router = APIRouter(prefix="/v1/dead_letters", tags=["dead letters"], route_class=StrictJsonRoute, responses=DOCUMENTED)

Code = Literal["poison", "max_attempts_exceeded"]


class DeadLetterObject(BaseModel):
    """A dead-lettered job; its full object is at ``/v1/jobs/{id}``."""

    id: str = Field(description="the job's id")
    object: Literal["dead_letter"] = "dead_letter"
    queue: str
    code: str
    message: str
    attempt: int = Field(description="charged attempts")
    crashes: int = Field(description="workers that crashed while they ran the job")
    created_at: int = Field(description="when it was dead-lettered, Unix seconds")
    replayed_as: str | None = Field(description="the job that its replay created")
    replayed_at: int | None


class DeadLetterList(BaseModel):
    """A page of dead letters; the next page is ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[DeadLetterObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ReplayObject(BaseModel):
    """The job that replays a dead letter."""

    id: str = Field(description="the dead letter's id")
    object: Literal["dead_letter.replay"] = "dead_letter.replay"
    job_id: str = Field(description="the new job")
    replayed: bool = Field(description="an earlier call created it")


class ReplayList(BaseModel):
    """The replayed dead letters. ``has_more``: call again, because more match or the queue was full."""

    object: Literal["list"] = "list"
    data: list[ReplayObject]
    has_more: bool


class ReplayFilter(Strict):
    """Filter for dead letters not replayed yet: by queue and error code."""

    queue: str | None = None
    code: Code | None = None
    limit: int = Field(20, ge=1, le=100)


@router.get("", response_model=DeadLetterList, summary="List dead letters")
async def list_dead_letters(
    runtime: RuntimeOf,
    principal: JobsReader,
    queue: str | None = None,
    code: Code | None = None,
    replayed: bool | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
    order: Literal["desc", "asc"] = "desc",
) -> Response:
    """Return the tenant's jobs that failed as `poison` or after their last attempt, newest first."""

    def read(db: Database) -> list[DeadLetter]:
        return dead_letters.list_dead_letters(
            db,
            principal.tenant_id,
            queue=queue,
            code=code,
            replayed=replayed,
            limit=limit + 1,
            after=after,
            descending=order == "desc",
        )

    found = await runtime.lists.read(principal, read)
    page = [_letter(letter) for letter in found[:limit]]
    return JsonResponse(
        DeadLetterList(
            data=page,
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=len(found) > limit,
        )
    )


@router.post("/replay", response_model=ReplayList, summary="Replay many dead letters")
async def replay_dead_letters(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: ReplayFilter
) -> Response:
    """Create a new job for each matching dead letter not replayed yet, oldest first."""
    done, has_more = await run_in_threadpool(
        replay_many, runtime, principal, queue=body.queue, code=body.code, limit=body.limit, trace=request.state.trace
    )
    return JsonResponse(ReplayList(data=[_replay(one) for one in done], has_more=has_more))


@router.post("/{job_id}/replay", status_code=202, response_model=ReplayObject, summary="Replay a dead letter")
async def replay_dead_letter(request: Request, runtime: RuntimeOf, principal: JobsWriter, job_id: JobId) -> Response:
    """Create a new job with the same input, new attempts and a new deadline. A second call returns the same job."""
    done = await run_in_threadpool(replay, runtime, principal, job_id, trace=request.state.trace)
    headers = {"Location": f"/v1/jobs/{done.job_id}", "X-Job-Id": done.job_id}
    if done.replayed:
        headers["Idempotent-Replayed"] = "true"
    return JsonResponse(_replay(done), status_code=202, headers=headers)


def _replay(done: ReplayedJob) -> ReplayObject:
    return ReplayObject(id=done.dead_job_id, job_id=done.job_id, replayed=done.replayed)


def _letter(letter: DeadLetter) -> DeadLetterObject:
    return DeadLetterObject(
        id=letter.job_id,
        queue=letter.queue,
        code=letter.code,
        message=letter.message,
        attempt=letter.attempt,
        crashes=letter.crashes,
        created_at=int(letter.at.timestamp()),
        replayed_as=letter.replayed_as,
        replayed_at=None if letter.replayed_at is None else int(letter.replayed_at.timestamp()),
    )

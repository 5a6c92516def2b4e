"""Routes of jobs: submit, read, list, cancel, timeline, delete."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Header, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.metadata_filters import metadata_filters
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute, unless_gone
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.jobs import cancel, job_views
from headrace.producer_api.jobs.job_views import JobBodyObject, JobDeleted, JobList, JobObject, Timeline
from headrace.producer_api.reads.job_loader import restored
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.streaming.job_events import progress_of, wait_until_ended
from headrace.producer_api.submission.draft_job import Origin, Receipt
from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.jobs import erasure, jobs
from headrace.store.jobs.answered_calls import CALL_TASK
from headrace.store.jobs.jobs import Job
from headrace.store.jobs.parent_part import parent_part
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.payloads.tool_approval import Approval
from headrace.store.scheduling.backlog import QueuePosition
from headrace.store.schema.job_states import FLOW_TASK, JobState
from headrace.store.streams import stream_log
from headrace.store.tasks.flow import FLOW_EXAMPLES, FlowRequest, JobOrFlowRequest, PipelineRequest
from headrace.store.tasks.registry import TASKS
from headrace.store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictJsonRoute, responses=DOCUMENTED)

JobId = Annotated[str, Path(examples=["job_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]

Prefer = Annotated[str | None, Header(description="`wait=N` answers 200 if the job ends within N seconds")]

_POLL_AFTER_S = "1"
# The queue position costs a query, and most jobs start before a client can use it.
_TOO_YOUNG_FOR_A_PLACE = timedelta(seconds=0.5)
_EXAMPLES = {name: example for task in TASKS.values() for name, example in task.examples.items()} | {**FLOW_EXAMPLES}


@router.post("", status_code=202, response_model=JobObject, summary="Submit a job")
async def create_job(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsWriter,
    body: Annotated[JobOrFlowRequest, Body(openapi_examples=_EXAMPLES)],
    origin: OriginOf,
    prefer: Prefer = None,
) -> Response:
    """Store a job durably and answer 202 with its URL."""
    return await submitted(request, runtime, principal, body, origin, prefer)


async def submitted(
    request: Request,
    runtime: Runtime,
    principal: Principal,
    body: JobOrder | FlowRequest | PipelineRequest,
    origin: Origin,
    prefer: str | None,
) -> Response:
    """Store the job of a request, and answer with it: 202, or 200 if the caller waits and it ends meanwhile."""
    wait_s = _wait_of(prefer)
    receipt = await runtime.submissions.submit(principal, body, origin)
    job = receipt.job or await runtime.reader.get(principal.tenant_id, receipt.job_id)
    if wait_s is not None and not await runtime.streams.try_enter(request):
        wait_s = None  # the job is accepted: a key over its limit of open waits gets the answer without waiting
    if wait_s is not None:
        job = await _wait(request, runtime, job, wait_s)
    has_ended = wait_s is not None and job.state.is_terminal
    headers = _receipt_headers(receipt, job)
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    if not has_ended:
        headers["Retry-After"] = _POLL_AFTER_S
    return JsonResponse(job_views.job_object(job), status_code=200 if has_ended else 202, headers=headers)


def _receipt_headers(receipt: Receipt, job: Job) -> dict[str, str]:
    return {
        **receipt.headers,
        "Location": f"/v1/jobs/{job.id}",
        "X-Job-Id": job.id,
        "X-Model-Version": str(job.model_version),
    }


_WAIT = re.compile(r"wait=(\d{1,6})", re.IGNORECASE)


def _wait_of(prefer: str | None) -> float | None:
    """Return the seconds of ``Prefer: wait=N``; unknown preferences are ignored, as RFC 7240 asks."""
    for preference in (prefer or "").split(","):
        if (match := _WAIT.fullmatch(preference.strip())) is not None:
            return float(match[1])
    return None


async def _wait(request: Request, runtime: Runtime, job: Job, wait_s: float) -> Job:
    waited = await unless_gone(request, wait_until_ended(runtime, job, min(wait_s, runtime.settings.max_wait_s)))
    return waited or job


_FILTERS = frozenset({"status", "task", "model", "created_after", "parent_id", "steps", "limit", "after", "order"})


@router.get("", response_model=JobList, summary="List jobs")
async def list_jobs(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsReader,
    status: JobState | None = None,
    task: str | None = None,
    model: str | None = None,
    created_after: Annotated[int | None, Query(ge=0, lt=1 << 35, description="Unix seconds")] = None,
    parent_id: Annotated[str | None, Query(description="only the steps of this job")] = None,
    steps: Annotated[bool, Query(description="also the steps of jobs")] = False,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
    order: Literal["desc", "asc"] = "desc",
) -> Response:
    """Return the tenant's jobs, newest first by default. `metadata[key]=value` is also a filter.

    Jobs with steps are listed without them, unless `steps` or `parent_id` asks for steps. A page looks at up to 5,000
    jobs, so with filters it may have few or none although `has_more` is true: go on after its `last_id`.
    """
    metadata = metadata_filters(request, _FILTERS)

    def read(db: Database) -> JobList:
        found = jobs.list_jobs(
            db,
            principal.tenant_id,
            state=status,
            task=task,
            model=model,
            metadata=metadata,
            created_after=None if created_after is None else datetime.fromtimestamp(created_after, UTC),
            parent_id=parent_id,
            with_steps=steps,
            limit=limit + 1,
            after=after,
            descending=order == "desc",
        )
        return job_views.job_list([*map(restored, found)], limit, found.read_to)

    return JsonResponse(await runtime.lists.read(principal, read))


@router.get("/{job_id}", response_model=JobObject, summary="Retrieve a job")
async def get_job(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsReader,
    job_id: JobId,
    wait: Annotated[float, Query(ge=0, description="seconds to wait for the end of the job, at most 60")] = 0,
) -> Response:
    """Return the job now, or when it has ended or after `wait` seconds."""
    job = await runtime.reader.get(principal.tenant_id, job_id)
    if wait > 0 and not job.state.is_terminal:
        await runtime.streams.enter(request)
        job = await _wait(request, runtime, job, wait)
    headers = {"X-Model-Version": str(job.model_version)}
    steps, waiting_for = None, list[Approval]()
    if job.task == FLOW_TASK:
        steps = [*map(restored, await run_in_threadpool(jobs.list_steps, runtime.db, principal.tenant_id, job.id))]
        waiting_for = [*await _waiting_for(runtime, job, steps)]
    if job.state.is_terminal:
        return JsonResponse(job_views.job_object(job, steps=steps), headers=headers)
    place = None
    if job.state is JobState.QUEUED and datetime.now(UTC) - job.created_at > _TOO_YOUNG_FOR_A_PLACE:
        place = await run_in_threadpool(_place_of, runtime, job)
    headers["Retry-After"] = _POLL_AFTER_S
    progress = await progress_of(runtime, job)
    shown = job_views.job_object(job, place=place, steps=steps, waiting_for=waiting_for, progress=progress)
    return JsonResponse(shown, headers=headers)


def _place_of(runtime: Runtime, job: Job) -> QueuePosition | None:
    """Return the place of a queued job. Without a worker it has no time: the rate is of workers that are gone.
    Blocks."""
    place = runtime.queue_limits.place_of(job)
    if place is None or place.starts_at is None or not runtime.live_processes.is_unserved(job.queue):
        return place
    return replace(place, starts_at=None)


async def _waiting_for(runtime: Runtime, job: Job, steps: Sequence[Job]) -> Sequence[Approval]:
    """Return the approvals that calls of the job wait for. Costs a query only if a call has not begun."""
    if not any(step.task == CALL_TASK and step.state is JobState.QUEUED for step in steps):
        return []
    return await run_in_threadpool(parent_part().waiting_for, runtime.db, job.tenant_id, job.id)


@router.post("/{job_id}/cancel", response_model=JobObject, summary="Cancel a job")
async def cancel_job(runtime: RuntimeOf, principal: JobsWriter, job_id: JobId) -> Response:
    """Cancel a queued job immediately, a running job at its next decode step. Partial output is kept."""
    job = await run_in_threadpool(cancel.cancel, runtime, principal.tenant_id, job_id)
    return JsonResponse(job_views.job_object(job))


@router.get("/{job_id}/request", response_model=JobBodyObject, summary="Retrieve a job's request")
async def get_request(runtime: RuntimeOf, principal: JobsReader, job_id: JobId) -> Response:
    """Return the body that makes the same job again. 410 after its input was purged."""
    job = await runtime.reader.get(principal.tenant_id, job_id)
    return JsonResponse(job_views.body_object(job))


@router.get("/{job_id}/timeline", response_model=Timeline, summary="Retrieve a job's timeline")
async def get_timeline(runtime: RuntimeOf, principal: JobsReader, job_id: JobId) -> Response:
    """Return the job's events, oldest first, and its attempts."""
    events = await run_in_threadpool(jobs.timeline, runtime.db, principal.tenant_id, job_id)
    return JsonResponse(job_views.timeline(job_id, events))


@router.delete("/{job_id}", response_model=JobDeleted, summary="Delete a job's contents")
async def delete_job(request: Request, runtime: RuntimeOf, principal: JobsWriter, job_id: JobId) -> Response:
    """Delete the input and output of an ended job now. Its row, usage and audit entries stay. Idempotent."""
    await run_in_threadpool(delete_contents, runtime, principal, job_id, request.state.request_id)
    return JsonResponse(JobDeleted(id=job_id))


def delete_contents(runtime: Runtime, principal: Principal, job_id: str, request_id: str) -> None:
    """Delete the input and output of an ended job. Raises Conflict, NotFound. Blocks."""
    erasure.purge_job(runtime.db, principal.tenant_id, job_id, actor=principal.key_id, request_id=request_id)
    # Without Redis, its copy expires some minutes after the last frame.
    with suppress(Unavailable):
        stream_log.forget(runtime.redis, [job_id])

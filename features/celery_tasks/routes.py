"""Routes for ``headrace.celery``: the job of a Celery task, by the task's id, and the messages of ended jobs."""

import asyncio
import time
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.celery_tasks import celery_tasks
from headrace.features.celery_tasks.celery_tasks import NewCeleryTask, TaskJob
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute, unless_gone
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.jobs import cancel, job_views
from headrace.producer_api.jobs.job_views import JobObject
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.jobs import Job
from headrace.store.json_text import dump_json
from headrace.store.payloads.strict_model import Strict
from headrace.store.tasks.flow import JobOrFlowRequest

router = APIRouter(prefix="/v1/celery", tags=["celery"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_ID = Field(min_length=1, max_length=255, pattern=r"^[!-~]+$", description="Celery's id of the task")
TaskId = Annotated[
    str, Path(max_length=255, description="Celery's id of the task", examples=["0d0e3c1e-6f0a-4a5c-9a44-9be1d3b6a1f2"])
]

MOST_MESSAGE_BYTES = 256 << 10
_MOST_TAKEN = 100
_LOOK_S = 0.25
# Looking takes longer with many open tasks, so it is done less often then: at most this part of the time.
_SHARE_LOOKING = 0.1

_JOB: dict[str, Any] = {
    "task": "generate",
    "model": "smollm2",
    "input": {"messages": [{"role": "user", "content": "Hello"}]},
}


class NewTask(Strict):
    """A task with its job. The message comes back as it is, once the job has ended."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"id": "0d0e3c1e-6f0a-4a5c-9a44-9be1d3b6a1f2", "message": {}, "job": _JOB}]},
    )

    id: Annotated[str, _ID]
    message: dict[str, Any] = Field(description="what a worker needs to go on, as a JSON object of at most 256 KiB")
    job: JobOrFlowRequest = Field(description="the job, as for `POST /v1/jobs`")


class CeleryTask(BaseModel):
    """A task and its job."""

    object: Literal["celery.task"] = "celery.task"
    id: str
    is_confirmed: bool = Field(description="the task has ended in the app too: its message comes no more")
    job: JobObject


class TakeOrder(Strict):
    """How long to wait for a job that ends."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"wait_s": 20}]})

    wait_s: float = Field(0, ge=0, le=60, description="answer after so many seconds at the latest")


class EndedTask(BaseModel):
    """A task whose job has ended, and its message."""

    id: str
    message: dict[str, Any] | None


class EndedTasks(BaseModel):
    """Tasks that were taken; each comes again later unless it is confirmed."""

    object: Literal["list"] = "list"
    data: list[EndedTask]


@router.post("/tasks", status_code=202, response_model=CeleryTask, summary="Submit the job of a Celery task")
async def create_task(runtime: RuntimeOf, principal: JobsWriter, body: NewTask, origin: OriginOf) -> Response:
    """Store the job and the message of a task together. An id has one job, whatever is sent with it again."""
    found = await run_in_threadpool(celery_tasks.find, runtime.db, principal.tenant_id, body.id)
    if found is not None:
        return await _shown(runtime, principal.tenant_id, found)
    if len(dump_json(body.message)) > MOST_MESSAGE_BYTES:
        raise InvalidRequest(f"the message is larger than {MOST_MESSAGE_BYTES >> 10} KiB", param="message")
    receipt = await runtime.submissions.submit(
        principal,
        body.job,
        replace(origin, idempotency_key=body.id, is_retry=False),
        NewCeleryTask(body.id, body.message),
    )
    new = TaskJob(body.id, receipt.job_id, is_confirmed=False)
    return await _shown(runtime, principal.tenant_id, new, receipt.job)


async def _shown(runtime: Runtime, tenant_id: str, task: TaskJob, job: Job | None = None) -> Response:
    job = job or await runtime.reader.get(tenant_id, task.job_id)
    shown = CeleryTask(id=task.task_id, is_confirmed=task.is_confirmed, job=job_views.job_object(job))
    return JsonResponse(shown, status_code=200 if job.state.is_terminal else 202)


@router.get("/tasks/{task_id}", response_model=CeleryTask, summary="Retrieve the job of a Celery task")
async def get_task(runtime: RuntimeOf, principal: JobsReader, task_id: TaskId) -> Response:
    """Return the job of a task now."""
    task = await run_in_threadpool(celery_tasks.get, runtime.db, principal.tenant_id, task_id)
    job = await runtime.reader.get(principal.tenant_id, task.job_id)
    shown = CeleryTask(id=task.task_id, is_confirmed=task.is_confirmed, job=job_views.job_object(job))
    return JsonResponse(shown)


@router.post("/tasks/{task_id}/cancel", response_model=JobObject, summary="Cancel the job of a Celery task")
async def cancel_task(runtime: RuntimeOf, principal: JobsWriter, task_id: TaskId) -> Response:
    """Cancel the job as `POST /v1/jobs/{job_id}/cancel` does."""
    task = await run_in_threadpool(celery_tasks.get, runtime.db, principal.tenant_id, task_id)
    job = await run_in_threadpool(cancel.cancel, runtime, principal.tenant_id, task.job_id)
    return JsonResponse(job_views.job_object(job))


@router.post("/tasks/{task_id}/confirm", status_code=204, summary="Confirm the end of a Celery task")
async def confirm_task(runtime: RuntimeOf, principal: JobsWriter, task_id: TaskId) -> Response:
    """Note that what follows the task was sent; its message comes no more. Idempotent.

    410 if the contents of the job were deleted: then the app deletes its result as well.
    """
    task = await run_in_threadpool(celery_tasks.get, runtime.db, principal.tenant_id, task_id)
    await runtime.reader.get(principal.tenant_id, task.job_id)
    await run_in_threadpool(celery_tasks.confirm, runtime.db, principal.tenant_id, task_id)
    return Response(status_code=204)


@router.post("/ended", response_model=EndedTasks, summary="Take Celery tasks whose jobs have ended")
async def take_ended(request: Request, runtime: RuntimeOf, principal: JobsWriter, body: TakeOrder) -> Response:
    """Return tasks whose jobs have ended and that are not confirmed, up to 100; wait for one if there is none.

    Each comes again after 30 seconds, then after twice as long each time, until it is confirmed.
    """
    if body.wait_s > 0:
        await runtime.streams.enter(request)
    until = time.monotonic() + min(body.wait_s, runtime.settings.max_wait_s)
    taken = await unless_gone(request, _take(runtime, principal.tenant_id, until))
    return JsonResponse(EndedTasks(data=[EndedTask(id=one, message=message) for one, message in taken or ()]))


async def _take(runtime: Runtime, tenant_id: str, until: float) -> list[tuple[str, Any]]:
    while True:
        began = time.monotonic()
        taken = await run_in_threadpool(celery_tasks.take_ended, runtime.db, tenant_id, _MOST_TAKEN)
        now = time.monotonic()
        if taken or now >= until or runtime.draining.is_set():
            return taken
        await asyncio.sleep(min(until - now, max(_LOOK_S, (now - began) / _SHARE_LOOKING)))

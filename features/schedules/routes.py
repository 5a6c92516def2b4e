"""Routes of schedules: create, replace, list, read, pause, resume, delete."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.batches.batch_routes import BatchRequest, new_batch
from headrace.features.cheap_hours.hours import read_hours
from headrace.features.schedules import schedules, ticks
from headrace.features.schedules.keeper import read_job
from headrace.features.schedules.schedules import Schedule
from headrace.features.schedules.ticks import Missed
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse, seconds
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED, from_validation
from headrace.producer_api.submission.draft_job import Origin
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import CHEAP, JobOrder
from headrace.store.payloads.strict_model import Body
from headrace.store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1/schedules", tags=["schedules"], route_class=StrictJsonRoute, responses=DOCUMENTED)

ScheduleName = Annotated[str, Path(description="name or id of the schedule", examples=["every-morning"])]

# The schedule adds two to the metadata of each run.
_MOST_METADATA = 14


class NewSchedule(Body):
    """The body of `POST /v1/schedules`."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "name": "every-morning",
                    "cron": "30 6 * * MON-FRI",
                    "zone": "Europe/Zurich",
                    "job": {"model": "smollm2", "input": {"prompt": "Good morning:"}, "sampling": {"max_tokens": 16}},
                }
            ]
        },
    )

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,63}$")] = Field(
        description="unique in the organization"
    )
    cron: Annotated[str, StringConstraints(max_length=200)] = Field(
        description="minute, hour, day, month and weekday, as in a crontab"
    )
    zone: Annotated[str, StringConstraints(max_length=64)] = Field(
        "UTC", description="IANA name, such as Europe/Zurich"
    )
    job: dict[str, Any] | None = Field(
        None, description="a body of `POST /v1/jobs`: of a task, of steps or of a pipeline"
    )
    batch: dict[str, Any] | None = Field(None, description="a body of `POST /v1/batches`")
    overlap: bool = Field(False, description="true: a run begins although the one before has not ended")
    missed: Missed = Field(
        Missed.LAST, description="what becomes of ticks that nothing ran: none of them, the last one, or all"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.job is None) == (self.batch is None):
            raise ValueError("give `job` or `batch`")
        return self


class ScheduleObject(BaseModel):
    """A schedule. Times are Unix seconds."""

    id: str
    object: Literal["schedule"] = "schedule"
    name: str = Field(description="unique in the organization")
    cron: str = Field(description="the line of cron")
    zone: str = Field(description="the IANA name of its time zone")
    job: dict[str, Any] | None = Field(description="the body of each job; null for batches")
    batch: dict[str, Any] | None = Field(description="the body of each batch; null for jobs")
    overlap: bool = Field(description="true: a run may begin while one is under way")
    missed: Missed = Field(description="what becomes of ticks that nothing ran")
    status: Literal["active", "paused"]
    next_at: int | None = Field(description="the next tick; null while it is paused")
    last_at: int | None = Field(description="the last tick that had a run")
    last_run_id: str | None = Field(description="the job or the batch of that tick")
    num_runs: int = Field(description="runs so far")
    num_skipped: int = Field(
        description="ticks without a run, because they were missed or the run before had not ended"
    )
    last_error: dict[str, Any] | None = Field(description="why the last tick was refused; null if it was not")
    created_at: int


class ScheduleList(BaseModel):
    """The schedules of a tenant, by name."""

    object: Literal["list"] = "list"
    data: list[ScheduleObject]


class ScheduleDeleted(BaseModel):
    """A deleted schedule."""

    id: str
    object: Literal["schedule"] = "schedule"
    deleted: Literal[True] = True


def _object(found: Schedule) -> ScheduleObject:
    return ScheduleObject(
        id=found.id,
        name=found.name,
        cron=found.cron,
        zone=found.zone,
        job=found.definition.get("job"),
        batch=found.definition.get("batch"),
        overlap=found.may_overlap,
        missed=found.missed,
        status="paused" if found.next_at is None else "active",
        next_at=seconds(found.next_at),
        last_at=seconds(found.last_at),
        last_run_id=found.last_run_id,
        num_runs=found.num_runs,
        num_skipped=found.num_skipped,
        last_error=found.last_error,
        created_at=int(found.created_at.timestamp()),
    )


def _check(runtime: Runtime, principal: Principal, body: NewSchedule) -> dict[str, Any]:
    """Return what to store. Raises InvalidRequest, NotFound and Forbidden for what could never run. Blocks."""
    kind, sent = ("job", body.job) if body.job is not None else ("batch", body.batch or {})
    if sent.get("start_after") not in (None, CHEAP):
        raise InvalidRequest("the schedule says when it starts: leave it out", param=f"{kind}.start_after")
    if sent.get("start_after") == CHEAP:
        read_hours(runtime.settings.cheap_hours).start(datetime.now(UTC), None)
    if len(sent.get("metadata") or {}) > _MOST_METADATA:
        raise InvalidRequest(f"runs of schedules have at most {_MOST_METADATA} texts", param=f"{kind}.metadata")
    try:
        if kind == "batch":
            request = BatchRequest.model_validate(sent)
            origin = Origin("schedules", None, "", False, 0)
            new_batch(request, origin, principal.key_id, [], cheap_hours=runtime.settings.cheap_hours)
        else:
            job = read_job(sent)
            if isinstance(job, JobOrder):
                runtime.submissions.version_of(principal, job.model)
    except ValidationError as error:
        raise from_validation(error.errors(include_input=False)) from None
    guard = runtime.guards.in_force(principal.tenant_id)
    if guard is not None:
        # It is stored as it was sent: a text that the policy would replace cannot be.
        guard.check_unchanged(sent, kind, "a request of a schedule")
    return {kind: sent}


def _stored(runtime: Runtime, principal: Principal, body: NewSchedule) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the columns of a body, and the request of its runs. Raises as ``_check``. Blocks."""
    ticks.check(body.cron, body.zone)
    definition = _check(runtime, principal, body)
    values = {
        "name": body.name,
        "cron": body.cron,
        "zone": body.zone,
        "may_overlap": body.overlap,
        "missed": body.missed.value,
        "api_key_id": principal.key_id,
        "next_at": ticks.following(body.cron, body.zone, datetime.now(UTC)),
    }
    return values, definition


@router.post("", status_code=201, response_model=ScheduleObject, summary="Create a schedule")
async def create_schedule(runtime: RuntimeOf, principal: JobsWriter, body: NewSchedule) -> Response:
    """Run a job or a batch again and again, with the rights of this key."""

    def create() -> Schedule:
        return schedules.create(runtime.db, principal.tenant_id, *_stored(runtime, principal, body))

    return JsonResponse(_object(await run_in_threadpool(create)), status_code=201)


@router.put("/{schedule}", response_model=ScheduleObject, summary="Replace a schedule")
async def replace_schedule(
    runtime: RuntimeOf, principal: JobsWriter, schedule: ScheduleName, body: NewSchedule
) -> Response:
    """Give a schedule another body, and the rights of this key. It keeps its name, its runs and its pause."""

    def replace() -> Schedule:
        found = schedules.get(runtime.db, principal.tenant_id, schedule)
        if body.name != found.name:
            raise InvalidRequest(f"the schedule keeps its name, {found.name}", param="name")
        return schedules.replace(runtime.db, found, *_stored(runtime, principal, body))

    return JsonResponse(_object(await run_in_threadpool(replace)))


@router.get("", response_model=ScheduleList, summary="List schedules")
async def list_schedules(runtime: RuntimeOf, principal: JobsReader) -> Response:
    """Return the tenant's schedules, by name."""
    found = await run_in_threadpool(schedules.list_schedules, runtime.db, principal.tenant_id)
    return JsonResponse(ScheduleList(data=[_object(one) for one in found]))


@router.get("/{schedule}", response_model=ScheduleObject, summary="Retrieve a schedule")
async def get_schedule(runtime: RuntimeOf, principal: JobsReader, schedule: ScheduleName) -> Response:
    """Return a schedule. Its runs are the jobs with its id as `metadata[schedule_id]`."""
    return JsonResponse(_object(await run_in_threadpool(schedules.get, runtime.db, principal.tenant_id, schedule)))


@router.post("/{schedule}/pause", response_model=ScheduleObject, summary="Pause a schedule")
async def pause_schedule(runtime: RuntimeOf, principal: JobsWriter, schedule: ScheduleName) -> Response:
    """Begin no more runs. The one that is under way goes on."""

    def pause() -> Schedule:
        found = schedules.get(runtime.db, principal.tenant_id, schedule)
        return schedules.set_next(runtime.db, found, None, actor=principal.key_id)

    return JsonResponse(_object(await run_in_threadpool(pause)))


@router.post("/{schedule}/resume", response_model=ScheduleObject, summary="Resume a schedule")
async def resume_schedule(runtime: RuntimeOf, principal: JobsWriter, schedule: ScheduleName) -> Response:
    """Go on with the next tick, with the rights of this key. Ticks of the pause have no runs."""

    def resume() -> Schedule:
        found = schedules.get(runtime.db, principal.tenant_id, schedule)
        next_at = found.next_at or ticks.following(found.cron, found.zone, datetime.now(UTC))
        return schedules.set_next(runtime.db, found, next_at, actor=principal.key_id)

    return JsonResponse(_object(await run_in_threadpool(resume)))


@router.delete("/{schedule}", response_model=ScheduleDeleted, summary="Delete a schedule")
async def delete_schedule(runtime: RuntimeOf, principal: JobsWriter, schedule: ScheduleName) -> Response:
    """Delete a schedule. Its runs stay."""

    def delete() -> Schedule:
        found = schedules.get(runtime.db, principal.tenant_id, schedule)
        schedules.delete(runtime.db, found, actor=principal.key_id)
        return found

    return JsonResponse(ScheduleDeleted(id=(await run_in_threadpool(delete)).id))

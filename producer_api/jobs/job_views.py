"""Response models of jobs, timelines and job lists. No I/O.

Times are Unix seconds, null until the event happens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, Field

from headrace.producer_api.http.views import rounded, seconds
from headrace.producer_api.jobs.approval_views import ApprovalObject, approval_object
from headrace.store.errors import Gone
from headrace.store.jobs.jobs import Job, JobEvent
from headrace.store.payloads.job_payload import JobOrder, PolicyHit, ServiceClass
from headrace.store.payloads.prompt_reference import PromptUse
from headrace.store.payloads.sampling_params import Truncated
from headrace.store.payloads.tool_approval import Approval
from headrace.store.registry.models import queue_name
from headrace.store.scheduling.backlog import QueuePosition
from headrace.store.schema.job_states import FLOW_TASK, CacheResult, JobState
from headrace.store.streams.stream_log import Progress, StreamCursor
from headrace.store.tasks.registry import TASKS


class QueuePlace(BaseModel):
    """The job's queue. ``position`` 1 starts next; null if not queued or not known."""

    name: str
    position: int | None = None
    estimated_start_at: int | None = Field(
        None, description="estimate from the recent rate of job starts; null if not known, or without a worker"
    )


class UsageObject(BaseModel):
    """Tokens and cost of the job."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_tokens: int = Field(0, description="input tokens found in the worker's prefix cache")
    reasoning_tokens: int = Field(0, description="output tokens of the model's reasoning")
    queue_ms: float | None = None
    first_token_ms: float | None = Field(
        None, description="from acceptance to the first token of the answer, in whichever attempt it came"
    )
    compute_ms: float | None = None
    cost: float | None = Field(None, description="at the price of the model version; null if it has none")


class Links(BaseModel):
    """Related URLs."""

    self: str
    events: str
    timeline: str
    cancel: str


class JobPolicy(BaseModel):
    """The version of the tenant's policy for this job, and the matches of its rules in the accepted input."""

    model: str | None
    version: int
    flagged: list[PolicyHit] = []


class StepObject(BaseModel):
    """A step of a job. It is a job too, with its own timeline under ``job_id``."""

    name: str = Field(description="as in the request")
    job_id: str = Field(description="the id of the step's own job")
    task: str
    status: JobState
    model: str
    model_version: int
    model_digest: str | None = Field(description="SHA-256 over the files of the version that runs it")
    needs: list[str] = Field(
        description="the steps that must have succeeded before, and the id of an approval that it waits for"
    )
    attempt: int
    started_at: int | None
    completed_at: int | None
    output: dict[str, Any] | None
    error: dict[str, Any] | None
    usage: UsageObject | None


class ProgressObject(BaseModel):
    """How far the attempt that runs is, as its task tells."""

    done: float
    total: float
    message: str
    preview: str | None = Field(None, description="a small picture of the result so far, as a data URL")


class JobObject(BaseModel):
    """A job."""

    id: str
    object: Literal["job"] = "job"
    task: str
    status: JobState
    model: str
    model_version: int
    model_digest: str | None = Field(description="SHA-256 over the files of the version that runs it")
    service_class: ServiceClass
    priority: int
    created_at: int
    start_after: int | None = Field(None, description="it does not start before; null: it need not wait")
    started_at: int | None
    completed_at: int | None
    expires_at: int | None
    cancel_requested_at: int | None
    queue: QueuePlace
    attempt: int
    max_attempts: int
    last_event_id: str | None = Field(description="id of the terminal event; null before the end")
    output: dict[str, Any] | None
    error: dict[str, Any] | None
    usage: UsageObject | None
    metadata: dict[str, str]
    purged_at: int | None = Field(None, description="when the output was deleted")
    cache: CacheResult | None = Field(None, description="what the response cache did for it; null: nothing")
    truncated: Truncated | None = Field(None, description="what was left out of the input; null: nothing")
    template: PromptUse | None = Field(None, description="the prompt template of its input; null: none")
    pipeline: PromptUse | None = Field(None, description="the version of a pipeline that has its steps; null: none")
    policy: JobPolicy | None = Field(None, description="null if the policy has no output rules and flagged nothing")
    parent_id: str | None = Field(None, description="of a step: its job")
    steps: list[StepObject] | None = Field(None, description="of a job with steps, where it is read alone; else null")
    waiting_for: list[ApprovalObject] | None = Field(
        None, description="the calls of tools that wait for an approval, where it is read alone; else null"
    )
    progress: ProgressObject | None = Field(
        None, description="of a running job whose task tells it, where it is read alone; else null"
    )
    links: Links


class JobList(BaseModel):
    """A page of jobs; the next page is ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    first_id: str | None
    last_id: str | None = Field(description="the last job that was looked at: the next page is `after` this id")
    has_more: bool


class JobDeleted(BaseModel):
    """A job with deleted contents."""

    id: str
    object: Literal["job"] = "job"
    deleted: Literal[True] = True


class JobBodyObject(BaseModel):
    """The body of `POST /v1/jobs` that makes the same job again."""

    job_id: str
    object: Literal["job.request"] = "job.request"
    body: dict[str, Any] = Field(
        description="with the version that ran and the sampling values that were used; "
        "a text that the tenant's policy replaced is its placeholder"
    )


class TimelineEntry(BaseModel):
    """An event of a job."""

    kind: str
    at: float = Field(description="Unix seconds, with fractions")
    epoch: int = Field(description="number of the claim, 0 before the first")
    detail: dict[str, Any]


class AttemptObject(BaseModel):
    """One run of the job by a worker."""

    epoch: int
    attempt: int | None
    worker: str | None
    engine: str | None = Field(description="the inference server that ran it; null: headrace's own engine")
    started_at: float
    ended_at: float | None
    outcome: str | None = Field(description="a terminal state, `released`, `lease_expired`, or null while it runs")
    first_token_ms: float | None = Field(
        description="from its start to its own first token; null while it runs, if it had none, or if it was lost"
    )


class Timeline(BaseModel):
    """All events of a job, oldest first, and its attempts."""

    object: Literal["job.timeline"] = "job.timeline"
    job_id: str
    events: list[TimelineEntry]
    attempts: list[AttemptObject]


def job_object(
    job: Job,
    *,
    place: QueuePosition | None = None,
    steps: Sequence[Job] | None = None,
    waiting_for: Sequence[Approval] = (),
    progress: Progress | None = None,
) -> JobObject:
    """Return the job object. ``steps``: of a job with steps, in order. ``waiting_for``: approvals that are pending."""
    return JobObject(
        id=job.id,
        task=job.task,
        status=job.state,
        model=job.model,
        model_version=job.model_version,
        model_digest=job.model_digest,
        service_class=job.service_class,
        priority=job.priority,
        created_at=int(job.created_at.timestamp()),
        start_after=seconds(job.start_after),
        started_at=seconds(job.started_at),
        completed_at=seconds(job.completed_at),
        expires_at=seconds(job.deadline_at),
        cancel_requested_at=seconds(job.cancel_requested_at),
        queue=_queue_place(job, place),
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        last_event_id=str(StreamCursor(job.epoch, job.num_deltas + 1)) if job.state.is_terminal else None,
        output=job.output,
        error=job.error,
        usage=_usage(job),
        metadata=job.metadata,
        purged_at=seconds(job.output_purged_at),
        cache=None if job.cache is None else CacheResult(job.cache),
        truncated=job.payload.get("truncated"),
        template=job.payload.get("template"),
        pipeline=job.payload.get("pipeline"),
        policy=_policy(job),
        parent_id=job.parent_id,
        steps=None if steps is None else [*map(_step_object, steps)],
        waiting_for=[*map(approval_object, waiting_for)] or None,
        progress=None if progress is None else ProgressObject(**asdict(progress)),
        links=_links(job.id),
    )


def _step_object(job: Job) -> StepObject:
    return StepObject(
        name=job.step or "",
        job_id=job.id,
        task=job.task,
        status=job.state,
        model=job.model,
        model_version=job.model_version,
        model_digest=job.model_digest,
        needs=job.needs or [],
        attempt=job.attempt,
        started_at=seconds(job.started_at),
        completed_at=seconds(job.completed_at),
        output=job.output,
        error=job.error,
        usage=_usage(job),
    )


def body_object(job: Job) -> JobBodyObject:
    """Return the request of a job; raise Gone if its input was purged."""
    if job.task == FLOW_TASK:
        return _body(job, {"steps": job.payload.get("steps")})
    task = TASKS.get(job.task)  # None: the package of the task is no longer installed
    own = () if task is None else task.request.model_fields.keys() - JobOrder.model_fields.keys()
    # The job that reads a file into a vector store has a file instead of an input.
    sent = job.payload.get("input") or job.payload.get("ingest")
    fields = {"task": job.task, "model": queue_name(job.model, job.model_version), "input": sent}
    return _body(job, fields | {name: job.payload[name] for name in sorted(own) if name in job.payload})


def _body(job: Job, own: Mapping[str, Any]) -> JobBodyObject:
    if own.get("input") is None and own.get("steps") is None:
        raise Gone(f"the input of job {job.id} is no longer kept")
    began_at = max(job.created_at, job.start_after or job.created_at)
    deadline = None if job.deadline_at is None else round((job.deadline_at - began_at).total_seconds() * 1000)
    fields = {
        **own,
        "service_class": job.service_class,
        "priority": job.priority,
        "deadline_ms": deadline,
        "max_attempts": job.max_attempts,
        "webhook": job.webhook,
        "metadata": job.metadata or None,
    }
    return JobBodyObject(job_id=job.id, body=_without_nulls(fields))


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    cleared = {name: _without_nulls(value) if isinstance(value, dict) else value for name, value in fields.items()}
    return {name: value for name, value in cleared.items() if value is not None}


def _queue_place(job: Job, place: QueuePosition | None) -> QueuePlace:
    name = queue_name(job.model, job.model_version)
    if place is None:
        return QueuePlace(name=name)
    return QueuePlace(name=name, position=place.position, estimated_start_at=seconds(place.starts_at))


def _policy(job: Job) -> JobPolicy | None:
    pinned = job.payload.get("policy")
    if pinned is None:
        return None
    return JobPolicy(model=pinned["model"] or None, version=pinned["version"], flagged=pinned.get("flagged", []))


def _links(job_id: str) -> Links:
    path = f"/v1/jobs/{job_id}"
    return Links(self=path, events=f"{path}/events", timeline=f"{path}/timeline", cancel=f"{path}/cancel")


def _usage(job: Job) -> UsageObject | None:
    if job.usage is None:
        return None
    tokens_in, tokens_out = int(job.usage["input_tokens"]), int(job.usage["output_tokens"])
    return UsageObject(
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        total_tokens=tokens_in + tokens_out,
        cached_tokens=int(job.usage.get("cached_tokens", 0)),
        reasoning_tokens=int(job.usage.get("reasoning_tokens", 0)),
        **{name: rounded(job.usage.get(name)) for name in ("queue_ms", "first_token_ms", "compute_ms")},
        cost=job.usage.get("cost"),
    )


def job_list(found: Sequence[Job], limit: int, read_to: str | None = None) -> JobList:
    """Return a page of jobs; ``found`` has up to ``limit + 1`` of them. ``read_to``: as in ``store.jobs.jobs``."""
    page = [job_object(job) for job in found[:limit]]
    last_id = page[-1].id if page else None
    return JobList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=read_to or last_id,
        has_more=len(found) > limit or read_to is not None,
    )


def timeline(job_id: str, events: Sequence[JobEvent]) -> Timeline:
    """Return the job's events, and its attempts built from them."""
    entries = [TimelineEntry(kind=e.kind, at=e.at.timestamp(), epoch=e.epoch, detail=e.detail) for e in events]
    started = [entry for entry in entries if entry.kind == "started"]
    return Timeline(job_id=job_id, events=entries, attempts=[_attempt(entry, entries) for entry in started])


def _attempt(started: TimelineEntry, entries: Sequence[TimelineEntry]) -> AttemptObject:
    ends = (e for e in entries if e.epoch == started.epoch and e.kind not in ("started", "cancel_requested", "queued"))
    end = next(ends, None)
    return AttemptObject(
        epoch=started.epoch,
        attempt=started.detail.get("attempt"),
        worker=started.detail.get("worker"),
        engine=started.detail.get("engine"),
        started_at=started.at,
        ended_at=None if end is None else end.at,
        outcome=None if end is None else end.kind,
        first_token_ms=rounded(None if end is None else end.detail.get("first_token_ms")),
    )

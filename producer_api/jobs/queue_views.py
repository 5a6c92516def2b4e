"""Response models of queues."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, Field

from headrace.producer_api.http.views import rounded, seconds
from headrace.store.hosts.host_reports import HostReport, outlook_of
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.scheduling.backlog import Load
from headrace.store.scheduling.queues import QueueView
from headrace.store.scheduling.scale_decisions import StoredDecision


class LoadObject(BaseModel):
    """Number of jobs, and their tokens (prompt and `max_tokens`)."""

    jobs: int
    tokens: int


class RateObject(BaseModel):
    """Recent rate at which workers started waiting jobs, per second."""

    jobs_per_s: float
    tokens_per_s: float


class QueueHostObject(BaseModel):
    """What model hosts do about a queue without a worker."""

    loads_in_s: float | None = Field(
        description="seconds until a host serves the queue if a job waits, about; null: none will"
    )
    reason: str | None = Field(description="why no host serves it, if `loads_in_s` is null")


class QueueScalingObject(BaseModel):
    """How many workers a queue should have, as the leading dispatcher decides every two seconds."""

    workers: int = Field(description="workers that the queue should have")
    reason: str = Field(description="why")
    decided_at: int | None = Field(description="when that was decided last, Unix seconds")


class QueueObject(BaseModel):
    """A queue, named after its model version, or one tenant's share of it."""

    name: str
    object: Literal["queue"] = "queue"
    share: Literal["all", "own"] = Field(description="`all` for keys with queues:admin, else the tenant's `own` share")
    workers: int = Field(
        description="workers that serve the queue now, for all tenants; with 0 its jobs wait for a worker"
    )
    running: int = Field(description="running jobs")
    queued: LoadObject
    by_class: dict[ServiceClass, LoadObject]
    announced: int = Field(description="queued jobs already announced to the workers")
    oldest_age_s: float | None = Field(description="age of the oldest queued job; null if none or not known")
    paused_at: int | None
    rate: RateObject | None = Field(description="rate of the whole queue; null if not known")
    host: QueueHostObject | None = Field(
        description="what model hosts do about the queue; null: a worker serves it, or no host knows it"
    )
    scaling: QueueScalingObject | None = Field(
        description="how many workers it should have; null: nobody decides that (HEADRACE_AUTOSCALE)"
    )


class QueueList(BaseModel):
    """All queues."""

    object: Literal["list"] = "list"
    data: list[QueueObject]


def queue_object(queue: QueueView, *, share: Literal["all", "own"], hosts: Sequence[HostReport] = ()) -> QueueObject:
    """Return the queue. ``hosts``: the live model hosts."""
    outlook = None if queue.workers else outlook_of(hosts, queue.name)
    return QueueObject(
        name=queue.name,
        share=share,
        workers=queue.workers,
        running=queue.running,
        queued=_load(queue.queued),
        by_class={service_class: _load(load) for service_class, load in queue.by_class.items()},
        announced=queue.announced,
        oldest_age_s=rounded(queue.oldest_age_s),
        paused_at=seconds(queue.paused_at),
        rate=None if queue.rate is None else RateObject(**{n: round(v, 3) for n, v in asdict(queue.rate).items()}),
        host=None if outlook is None else QueueHostObject(loads_in_s=outlook.in_s, reason=outlook.text),
        scaling=None if queue.scaling is None else scaling_object(queue.scaling),
    )


def scaling_object(decision: StoredDecision) -> QueueScalingObject:
    """Return how many workers a queue should have."""
    return QueueScalingObject(
        workers=decision.replicas, reason=decision.reason, decided_at=seconds(decision.decided_at)
    )


def _load(load: Load) -> LoadObject:
    return LoadObject(jobs=load.jobs, tokens=load.tokens)

"""Queues, as the API shows them."""

from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, Field

from producer_api.http.views import rounded, seconds
from store.payloads.job_payload import ServiceClass
from store.scheduling.backlog import Load
from store.scheduling.queues import QueueView


class LoadObject(BaseModel):
    """Jobs, and their tokens: prompt and `max_tokens` together."""

    jobs: int
    tokens: int


class RateObject(BaseModel):
    """What workers started in a second while jobs waited for them, lately."""

    jobs_per_s: float
    tokens_per_s: float


class QueueObject(BaseModel):
    """A queue, which is named for its model version, or one tenant's share of it."""

    name: str
    object: Literal["queue"] = "queue"
    share: Literal["all", "own"] = Field(description="of everybody for keys with queues:admin, else the tenant's own")
    workers: int = Field(
        description="that serve the queue now, for every tenant; with 0, its jobs wait for one to start"
    )
    running: int = Field(description="jobs that a worker runs now")
    queued: LoadObject
    by_class: dict[ServiceClass, LoadObject]
    announced: int = Field(description="queued jobs that are on their way to a worker")
    oldest_age_s: float | None = Field(description="null if nothing is queued, or the oldest was not found quickly")
    paused_at: int | None
    rate: RateObject | None = Field(description="of the whole queue; null while it is not known")


class QueueList(BaseModel):
    """All queues."""

    object: Literal["list"] = "list"
    data: list[QueueObject]


def queue_object(queue: QueueView, *, share: Literal["all", "own"]) -> QueueObject:
    """Return the queue."""
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
    )


def _load(load: Load) -> LoadObject:
    return LoadObject(jobs=load.jobs, tokens=load.tokens)

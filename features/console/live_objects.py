"""The response models of the live figures: ``LiveSnapshot`` once, ``LiveState`` and ``LiveHistory`` as events.

Times are Unix seconds. A key that sees all (``queues:admin``) gets every tenant's figures; any other key gets those of
its own tenant.
"""

from typing import Literal

from pydantic import BaseModel, Field

from headrace.features.hosts.host_views import HostObject
from headrace.producer_api.jobs.queue_views import QueueObject
from headrace.store.redis.live_workers import TICK_S

Health = Literal["ok", "late", "stalled", "lost"]
ProblemKind = Literal[
    "paused", "no_worker", "full", "not_taken", "flood", "worker_late", "worker_stalled", "worker_lost"
]


class TenantLoad(BaseModel):
    """The queued jobs of one tenant in a queue."""

    id: str = Field(description="id of the tenant")
    name: str | None = Field(description="name of the tenant")
    jobs: int = Field(description="its queued jobs")
    tokens: int = Field(description="tokens of these jobs, prompt and `max_tokens`")


class LiveQueue(QueueObject):
    """A queue, when it will be empty at its recent rate, and its largest tenants."""

    clears_in_s: float | None = Field(description="seconds to start all queued jobs at the recent rate; null: unknown")
    tenants: list[TenantLoad] = Field(description="the largest tenants; empty for keys without queues:admin")


class LiveJob(BaseModel):
    """One attempt that a worker holds."""

    id: str = Field(description="id of the job")
    tenant: str | None = Field(description="id of its tenant; null for keys without queues:admin")
    class_rank: int = Field(description="0 interactive, 1 standard, 2 batch")
    attempt: int = Field(description="number of the charged attempt, from 1")
    age_s: float = Field(description="seconds since the worker claimed it")
    input_tokens: int = Field(description="tokens of the prompt")
    output_tokens: int = Field(description="tokens that this attempt has generated")
    max_tokens: int = Field(description="0 for tasks that generate no text")
    progress: float | None = Field(None, description="from 0 to 1, as its task tells; null: it does not")


class LiveWorker(BaseModel):
    """A worker. Without queues:admin ``jobs`` are the tenant's own, and the figures of the whole worker are null."""

    id: str = Field(description="id of the worker, as in the timeline of a job")
    queue: str = Field(description="the queue that it serves")
    engine: str | None = Field(description="its inference server; null: headrace's own engine")
    seen_age_s: float = Field(description="age of what the worker has told, in seconds")
    slots: int = Field(description="requests that it runs at once")
    running: int | None = Field(description="requests in its batch")
    waiting: int | None = Field(description="requests inside its engine that wait for room")
    free_blocks: int | None = Field(description="blocks of its KV cache that no request holds")
    total_blocks: int | None = Field(description="blocks of its KV cache")
    lease_s: float = Field(description="how long a lease lasts without a renewal, in seconds")
    lease_age_s: float | None = Field(description="seconds since the oldest renewal; null if it holds no job")
    quiet_s: float | None = Field(description="seconds that its requests have run without a new token; null: none run")
    is_reserved: bool = Field(
        False, description="it takes no other jobs, because one that lost its worker runs alone, or waits for that"
    )
    health: Health = Field(
        description="`late`: its heartbeat or its leases are; `stalled`: no new token for 15 s; `lost`: no heartbeat "
        "for 15 s, it is shown for 45 s more"
    )
    jobs: list[LiveJob] = Field(description="what it holds")


class LiveProblem(BaseModel):
    """Something that needs attention."""

    kind: ProblemKind = Field(description="what it is")
    queue: str = Field(description="the queue that it is about, or that the worker serves")
    worker: str | None = Field(None, description="id of the worker that it is about")
    cause: str | None = Field(None, description="why the jobs of the queue wait; null: the problem is another one")
    text: str = Field(description="a sentence for people")


class LiveState(BaseModel):
    """The queues and workers at one moment; the data of the event `live`."""

    at: float = Field(description="time of the reading, Unix seconds")
    share: Literal["all", "own"] = Field(description="`all` for keys with queues:admin, else the tenant's `own`")
    missing: list[str] = Field(description="what could not be read: `postgres`, `redis`")
    queues: list[LiveQueue] = Field(description="every queue, by name")
    workers: list[LiveWorker] = Field(description="every worker, by queue and id")
    hosts: list[HostObject] = Field(description="every model host, by name; empty for keys without queues:admin")
    problems: list[LiveProblem] = Field(description="what needs attention, as sentences")
    cache_hit_rate: float | None = Field(
        description="share of hits of the response cache since this API process started; null: it had no request, or "
        "the key sees its own tenant alone"
    )


class HistoryPoint(BaseModel):
    """A few seconds of the past. Null: nothing was measured, or it is not this key's to see."""

    at: float = Field(description="its end, Unix seconds")
    tokens_per_s: float = Field(description="generated tokens per second")
    first_token_p50_ms: float | None = Field(description="median time to the first token, of the 30 s before")
    first_token_p95_ms: float | None = Field(description="95th percentile of the same")
    occupancy: float | None = Field(description="running requests divided by slots, of all workers")


class QueueSpeed(BaseModel):
    """How fast one queue was served in the last minute."""

    queue: str = Field(description="name of the queue")
    tokens_per_s: float = Field(description="generated tokens per second")
    first_token_p50_ms: float | None = Field(description="median time from acceptance to the first token")
    first_token_p95_ms: float | None = Field(description="95th percentile of it")


class LiveHistory(BaseModel):
    """The last ten minutes; the data of the event `history`."""

    step_s: float = Field(TICK_S, description="length of a step, in seconds")
    points: list[HistoryPoint] = Field(description="a point for each step, oldest first")
    speeds: list[QueueSpeed] = Field(description="the last minute of each queue that was served, by name")


class LiveSnapshot(BaseModel):
    """The state and the history, once."""

    state: LiveState = Field(description="the queues and workers now")
    history: LiveHistory = Field(description="the last ten minutes")

"""The live events of the console as response models, and how they are made from what was read. No I/O.

Times are Unix seconds. A key that sees all (``queues:admin``) gets every tenant's figures; any other key gets those of
its own tenant.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from pydantic import BaseModel, Field

from producer_api.http.views import rounded
from producer_api.jobs.queue_views import QueueObject, queue_object
from store.redis.live_workers import HISTORY_S, TICK_S, WorkerSnapshot, WorkerTick
from store.scheduling.backlog import Backlog
from store.scheduling.queues import QueueView

T = TypeVar("T")

MOST_TENANTS = 5
"""Tenants of a queue that are named, those with the most queued tokens."""

SPEED_OVER_S = 60.0

FIRST_TOKENS_OVER_S = 30.0
"""A point's times to the first token are those of this long before it."""


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
    jobs: list[LiveJob] = Field(description="what it holds")


class LiveState(BaseModel):
    """The queues and workers at one moment; the data of the event `live`."""

    at: float = Field(description="time of the reading, Unix seconds")
    share: Literal["all", "own"] = Field(description="`all` for keys with queues:admin, else the tenant's `own`")
    missing: list[str] = Field(description="what could not be read: `postgres`, `redis`")
    queues: list[LiveQueue] = Field(description="every queue, by name")
    workers: list[LiveWorker] = Field(description="every worker, by queue and id")


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


Tick = tuple[float, WorkerTick]


def live_queues(
    found: Iterable[QueueView], backlog: Backlog, names: Mapping[str, str], *, sees_all: bool
) -> list[LiveQueue]:
    """Return the queues."""
    return [
        LiveQueue(
            **queue_object(queue, share="all" if sees_all else "own").model_dump(),
            clears_in_s=rounded(backlog.wait_s(queue.name, backlog.queued(queue=queue.name))),
            tenants=_largest(backlog, queue.name, names) if sees_all else [],
        )
        for queue in found
    ]


def largest_tenants(backlog: Backlog) -> set[str]:
    """Return the tenants that ``live_queues`` names."""
    return {load.id for name in {share.queue for share in backlog.shares} for load in _largest(backlog, name, {})}


def _largest(backlog: Backlog, queue: str, names: Mapping[str, str]) -> list[TenantLoad]:
    tenants = {share.tenant_id for share in backlog.shares_of(queue)}
    loads = {tenant_id: backlog.queued(queue=queue, tenant_id=tenant_id) for tenant_id in tenants}
    largest = sorted(loads, key=lambda tenant_id: (-loads[tenant_id].tokens, tenant_id))[:MOST_TENANTS]
    return [TenantLoad(id=one, name=names.get(one), jobs=loads[one].jobs, tokens=loads[one].tokens) for one in largest]


def live_workers(found: Sequence[tuple[WorkerSnapshot, float]], tenant_id: str | None) -> list[LiveWorker]:
    """Return the workers for the operator (None), or as one tenant sees them."""
    return [_worker(snapshot, age_s, tenant_id) for snapshot, age_s in found]


def _worker(snapshot: WorkerSnapshot, age_s: float, tenant_id: str | None) -> LiveWorker:
    sees_all = tenant_id is None
    jobs = [
        LiveJob(tenant=job.tenant_id if sees_all else None, **job.model_dump(exclude={"tenant_id"}))
        for job in snapshot.jobs
        if tenant_id in (None, job.tenant_id)
    ]
    return LiveWorker(
        id=snapshot.id,
        queue=snapshot.queue,
        engine=snapshot.engine,
        seen_age_s=round(age_s, 3),
        slots=snapshot.slots,
        running=snapshot.running if sees_all else None,
        waiting=snapshot.waiting if sees_all else None,
        free_blocks=snapshot.free_blocks if sees_all else None,
        total_blocks=snapshot.total_blocks if sees_all else None,
        lease_s=snapshot.lease_s,
        lease_age_s=snapshot.lease_age_s,
        jobs=jobs,
    )


def history(ticks: Sequence[Tick], tenant_id: str | None, now: float) -> LiveHistory:
    """Return the points of the last ten minutes up to ``now``; steps without a tick before the first one are absent."""
    by_step: defaultdict[int, list[Tick]] = defaultdict(list)
    for at, tick in ticks:
        by_step[int(at // TICK_S)].append((at, tick))
    if not by_step:
        return LiveHistory(points=[], speeds=[])
    last = int(now // TICK_S) - 1
    first = max(min(by_step), last - int(HISTORY_S / TICK_S) + 1)
    times = _first_token_times(ticks, tenant_id)
    return LiveHistory(
        points=[_point(step, by_step[step], times, tenant_id) for step in range(first, last + 1)],
        speeds=_speeds([tick for at, tick in ticks if at > now - SPEED_OVER_S], tenant_id),
    )


def _speeds(ticks: Iterable[WorkerTick], tenant_id: str | None) -> list[QueueSpeed]:
    by_queue: defaultdict[str, list[WorkerTick]] = defaultdict(list)
    for tick in ticks:
        by_queue[tick.queue].append(tick)
    return [_speed(queue, by_queue[queue], tenant_id) for queue in sorted(by_queue)]


def _speed(queue: str, ticks: Sequence[WorkerTick], tenant_id: str | None) -> QueueSpeed:
    times = sorted(ms for tick in ticks for own in _own(tick.first_token_ms, tenant_id) for ms in own)
    return QueueSpeed(
        queue=queue,
        tokens_per_s=round(sum(sum(_own(tick.tokens, tenant_id)) for tick in ticks) / SPEED_OVER_S, 1),
        first_token_p50_ms=_percentile(times, 0.5),
        first_token_p95_ms=_percentile(times, 0.95),
    )


def _first_token_times(ticks: Sequence[Tick], tenant_id: str | None) -> Callable[[float], list[float]]:
    """Return the function that gives the times to the first token in the seconds before a time, sorted."""

    def before(end: float) -> list[float]:
        inside = (tick for at, tick in ticks if end - FIRST_TOKENS_OVER_S <= at < end)
        return sorted(ms for tick in inside for own in _own(tick.first_token_ms, tenant_id) for ms in own)

    return before


def _point(
    step: int, ticks: Sequence[Tick], times_before: Callable[[float], list[float]], tenant_id: str | None
) -> HistoryPoint:
    end = (step + 1) * TICK_S
    times = times_before(end)
    tokens = sum(sum(_own(tick.tokens, tenant_id)) for _, tick in ticks)
    slots = sum(tick.slots for _, tick in ticks)
    running = sum(tick.running for _, tick in ticks)
    return HistoryPoint(
        at=end,
        tokens_per_s=round(tokens / TICK_S, 1),
        first_token_p50_ms=_percentile(times, 0.5),
        first_token_p95_ms=_percentile(times, 0.95),
        occupancy=round(running / slots, 3) if slots and tenant_id is None else None,
    )


def _own(by_tenant: Mapping[str, T], tenant_id: str | None) -> list[T]:
    """Return the values of one tenant, or all of them."""
    return [value for one, value in by_tenant.items() if tenant_id in (None, one)]


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None

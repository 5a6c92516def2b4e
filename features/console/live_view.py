"""How the live figures are made from what was read. No I/O."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from headrace.features.console.live_objects import (
    HistoryPoint,
    LiveHistory,
    LiveJob,
    LiveQueue,
    LiveState,
    LiveWorker,
    QueueSpeed,
    TenantLoad,
)
from headrace.features.console.live_problems import health, problems
from headrace.features.hosts.host_views import host_object
from headrace.producer_api.http.views import rounded
from headrace.producer_api.jobs.queue_views import queue_object
from headrace.store.hosts.host_reports import HostReport
from headrace.store.redis.live_workers import HISTORY_S, TICK_S, WorkerSnapshot, WorkerTick
from headrace.store.scheduling.backlog import Backlog
from headrace.store.scheduling.queues import QueueView

T = TypeVar("T")

MOST_TENANTS = 5
"""Tenants of a queue that are named, those with the most queued tokens."""

SPEED_OVER_S = 60.0

FIRST_TOKENS_OVER_S = 30.0
"""A point's times to the first token are those of this long before it."""


Tick = tuple[float, WorkerTick]


def live_state(
    at: float,
    queues: list[LiveQueue],
    workers: list[LiveWorker],
    missing: Iterable[str],
    *,
    hosts: Iterable[HostReport] = (),
    cache_hit_rate: float | None = None,
    sees_all: bool,
) -> LiveState:
    """Return the state with its problems."""
    # A dead worker counts for some seconds more. Until then, as without any, nothing is served at the recent rate.
    sick = {one.queue for one in workers} - {one.queue for one in workers if one.health == "ok"}
    queues = [one.model_copy(update={"clears_in_s": None}) if one.name in sick else one for one in queues]
    return LiveState(
        at=at,
        share="all" if sees_all else "own",
        missing=sorted(set(missing)),
        queues=queues,
        workers=workers,
        hosts=[host_object(host) for host in hosts] if sees_all else [],
        problems=problems(queues, workers),
        cache_hit_rate=rounded(cache_hit_rate) if sees_all else None,
    )


def live_queues(
    found: Iterable[QueueView],
    backlog: Backlog,
    names: Mapping[str, str],
    hosts: Sequence[HostReport] = (),
    *,
    sees_all: bool,
) -> list[LiveQueue]:
    """Return the queues."""
    return [
        LiveQueue(
            **queue_object(queue, share="all" if sees_all else "own", hosts=hosts).model_dump(),
            clears_in_s=_clears_in_s(queue, backlog),
            tenants=_largest(backlog, queue.name, names) if sees_all else [],
        )
        for queue in found
    ]


def _clears_in_s(queue: QueueView, backlog: Backlog) -> float | None:
    # The rate is known for a while after the last worker has gone, but nothing is served at it.
    return rounded(backlog.wait_s(queue.name, backlog.queued(queue=queue.name))) if queue.workers else None


def largest_tenants(backlog: Backlog) -> set[str]:
    """Return the tenants that ``live_queues`` names."""
    return {load.id for name in {share.queue for share in backlog.computed} for load in _largest(backlog, name, {})}


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
    lease_age_s = None if snapshot.lease_age_s is None else round(snapshot.lease_age_s + age_s, 3)
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
        lease_age_s=lease_age_s,
        quiet_s=snapshot.quiet_s if sees_all else None,
        is_reserved=snapshot.is_reserved,
        health=health(age_s, snapshot.quiet_s, lease_age_s, snapshot.lease_s),
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

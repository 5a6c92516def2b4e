"""The duty that decides how many workers each queue of HEADRACE_AUTOSCALE should have. Drivers start and drain them.

Only the leader decides. What a decision needs of those before is stored with it, so the next leader goes on from there.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import structlog

from headrace.store.db.database import Database
from headrace.store.db.presence import read_serving
from headrace.store.errors import HeadraceError
from headrace.store.hosts.hosted_versions import HostedVersion, read_hosted_versions
from headrace.store.metrics.dispatcher_metrics import DispatcherMetrics
from headrace.store.registry.models import queue_name, resolve
from headrace.store.scale_bounds import parse_bounds
from headrace.store.scheduling.autoscale import QueueState, ScaleHistory, ScaleLimits, WaitingClass, decide
from headrace.store.scheduling.backlog import Backlog, read_backlog
from headrace.store.scheduling.queue_ages import QueueAge, read_queue_ages
from headrace.store.scheduling.scale_decisions import read_histories, read_running, read_slots, write_decisions
from headrace.store.scheduling.service_rate import Interval, RateMeter
from headrace.store.settings import Settings

log = structlog.get_logger(__name__)

LOAD_S = 60.0
"""The load is the tokens that started in this time."""

# Of a version that no worker has verified. The first start that is seen replaces it.
_UNMEASURED_START_S = 10.0

# A rate of fewer seconds is mostly that of a worker that fills its slots.
_KNOWN_AFTER_S = 5.0


class WorkerMeter:
    """The load of one queue, and the rate of one of its workers: tokens a second of a worker while jobs wait."""

    def __init__(self) -> None:
        self._started: deque[tuple[float, int]] = deque()
        self._workers = 0
        self._read_at: float | None = None
        self._worker_s = 0.0
        self._meter = RateMeter(0.0)
        self._is_new = False

    def observe(self, interval: Interval) -> None:
        """Add what happened to the queue. Its times are seconds of Postgres."""
        self._run_until(interval.at)
        self._started.append((interval.at, interval.started_tokens))
        # Here too: nothing asks for the load of a queue without bounds.
        self._forget(interval.at)
        # The clock of the meter is that of all workers together, so its rate is that of one.
        if self._workers:
            self._is_new |= self._meter.observe(replace(interval, at=self._worker_s))

    def has_workers(self, at: float, workers: int) -> None:
        """Note the number of live workers."""
        self._run_until(at)
        self._workers = workers

    def load(self, at: float) -> float:
        """Return the tokens that started in a second, of the last ``LOAD_S``."""
        self._forget(at)
        return sum(tokens for _, tokens in self._started) / LOAD_S

    def take_rate(self) -> float | None:
        """Return the tokens that one worker starts in a second; None without news since the last call."""
        is_new, self._is_new = self._is_new, False
        rate = self._meter.rate(known_after_s=_KNOWN_AFTER_S)
        return rate.tokens_per_s or None if rate is not None and is_new else None

    def _forget(self, at: float) -> None:
        while self._started and self._started[0][0] < at - LOAD_S:
            self._started.popleft()

    def _run_until(self, at: float) -> None:
        if self._read_at is not None:
            self._worker_s += self._workers * max(0.0, at - self._read_at)
        self._read_at = max(at, self._read_at or at)


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A version with bounds, and its limits."""

    version: HostedVersion
    limits: ScaleLimits


class Autoscaler:
    """Decides for every queue that the settings name. ``observe`` gets what the leader counts."""

    def __init__(self, db: Database, settings: Settings, metrics: DispatcherMetrics) -> None:
        self._db = db
        self._settings = settings
        self._metrics = metrics
        self._bounds = parse_bounds(settings.autoscale)
        self._meters: dict[str, WorkerMeter] = {}
        self._unknown: set[str] = set()

    @property
    def is_needed(self) -> bool:
        """Whether the settings name a model."""
        return bool(self._bounds)

    def observe(self, queue: str, interval: Interval) -> None:
        """Add what happened to a queue since the last count."""
        if self._bounds:
            self._meters.setdefault(queue, WorkerMeter()).observe(interval)

    def turn(self) -> None:
        """Decide, and store the decisions. Raises Unavailable."""
        scaled = self._scaled()
        if not scaled:
            return
        histories = read_histories(self._db, scaled)
        states = self._states(scaled, read_backlog(self._db))
        decisions = {
            queue: decide(states[queue], one.limits, histories.get(queue, ScaleHistory()))
            for queue, one in scaled.items()
        }
        write_decisions(self._db, decisions)
        for queue, decision in decisions.items():
            before = histories.get(queue, ScaleHistory()).replicas
            if decision.replicas != before:
                log.info("scaled", queue=queue, workers=decision.replicas, before=before, reason=decision.reason)
        self._metrics.queues.show_wanted({queue: one.replicas for queue, one in decisions.items()})

    def _scaled(self) -> dict[str, _Scaled]:
        """Return the versions with bounds, by queue. An unknown name is logged once."""
        versions = {one.queue: one for one in read_hosted_versions(self._db)}
        found: dict[str, _Scaled] = {}
        for bounds in self._bounds:
            try:
                version = resolve(self._db, bounds.model)
                queue = queue_name(version.model, version.version)
                hosted = versions[queue]
            except (HeadraceError, KeyError) as error:
                if bounds.model not in self._unknown:
                    self._unknown.add(bounds.model)
                    log.warning("not_autoscaled", model=bounds.model, error=str(error))
                continue
            found[queue] = _Scaled(hosted, self._limits(bounds.least, bounds.most))
        return found

    def _limits(self, least: int, most: int) -> ScaleLimits:
        settings = self._settings
        return ScaleLimits(
            least,
            most,
            wait_s=settings.autoscale_wait_s,
            cool_down_s=settings.autoscale_cool_down_s,
            zero_after_s=settings.autoscale_zero_after_s,
        )

    def _states(self, scaled: Mapping[str, _Scaled], backlog: Backlog) -> dict[str, QueueState]:
        ages = {(one.queue, one.class_rank): one for one in read_queue_ages(self._db)} if backlog.computed else {}
        running, slots, serving = read_running(self._db), read_slots(self._db), read_serving(self._db)
        at = backlog.at.timestamp()
        found = {}
        for queue, one in scaled.items():
            live = serving[queue].workers if queue in serving else 0
            meters = [self._meters.setdefault(name, WorkerMeter()) for name in one.version.queues]
            for meter in meters:
                meter.has_workers(at, live)
            found[queue] = QueueState(
                at,
                waiting(one.version.queues, backlog, ages),
                running_jobs=sum(running.get(name, 0) for name in one.version.queues),
                workers=live,
                slots=slots.get(queue),
                load_tokens_per_s=sum(meter.load(at) for meter in meters),
                worker_tokens_per_s=meters[0].take_rate(),
                cold_start_s=one.version.start_s or _UNMEASURED_START_S,
            )
        return found


def waiting(
    queues: tuple[str, ...], backlog: Backlog, ages: Mapping[tuple[str, int], QueueAge]
) -> tuple[WaitingClass, ...]:
    """Return what waits in a queue and in those of its adapters, by class. Paused queues have nothing waiting."""
    tokens: dict[int, int] = {}
    for share in backlog.computed:
        if share.queue in queues and share.queue not in backlog.paused and share.queued.jobs:
            load = max(share.queued.tokens, share.queued.jobs)
            tokens[share.class_rank] = tokens.get(share.class_rank, 0) + load
    found = []
    for rank, number in sorted(tokens.items()):
        own = [ages[queue, rank] for queue in queues if (queue, rank) in ages and queue not in backlog.paused]
        deadlines = [one.earliest_deadline for one in own if one.earliest_deadline is not None]
        left_s = min(((one - backlog.at).total_seconds() for one in deadlines), default=None)
        found.append(WaitingClass(rank, number, max((one.oldest_age_s or 0.0 for one in own), default=0.0), left_s))
    return tuple(found)

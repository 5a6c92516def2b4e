"""The loop of a model host: reads what waits, decides who has a place, starts and drains workers, and reports.

    read (registry, work, other hosts) ──▶ ``placement.decide`` ──▶ drain, start ──▶ report in Postgres

While Postgres is away the workers stay as they are. When the host ends, its workers drain.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

import structlog

from store.db.database import Database
from store.db.leader_election import Leadership, lead
from store.errors import Conflict, HeadraceError, Unavailable
from store.hosts.host_reports import (
    HostEvent,
    HostOutlook,
    HostPlace,
    HostReport,
    PlaceState,
    last_report,
    now,
    read_hosts,
    remove_report,
    write_report,
)
from store.hosts.hosted_versions import HostedVersion, WaitingWork, read_hosted_versions, read_waiting_work
from store.metrics.host_metrics import HostMetrics
from store.settings import Settings
from workers.health import LoopHeartbeat
from workers.host.placement import Displacement, PlacementPlan, Resident, Rules, Start, VersionLoad, decide, forecast
from workers.host.resident_workers import ResidentWorker, end_left_over
from workers.host.version_history import VersionHistory
from workers.host.version_needs import VersionNeeds, used_memory

log = structlog.get_logger(__name__)

LOOK_S = 0.5
_REGISTRY_S = 2.0
_MEMORY_S = 2.0
_RETRY_S = 1.0
# The host before this one may have been killed a moment ago.
_OTHER_ENDS_S = 20.0
_STEADY_S = 60.0
_LONGEST_TURN_S = 60.0
_SLOWEST_START_S = 300.0
_SLOWEST_SERVER_START_S = 1800.0
_MOST_EVENTS = 20

EventKind = Literal["started", "serving", "draining", "ended", "failed"]


class ModelHost:
    """One host. ``stop`` may be called from another thread. ``is_ours``: whether a version may have a place here."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        rules: Rules,
        metrics: HostMetrics,
        *,
        is_ours: Callable[[HostedVersion], bool] = lambda _version: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._name = name
        self._rules = rules
        self._metrics = metrics
        self._is_ours = is_ours
        self._clock = clock
        # One connection holds the lock of the name.
        self._db = Database(settings.database_url, pool_size=2, application_name="headrace-host")
        self._workers: dict[str, ResidentWorker] = {}
        self._counted: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._versions: Mapping[str, HostedVersion] = {}
        self._history = VersionHistory()
        self._needs = VersionNeeds()
        self._events: deque[HostEvent] = deque(maxlen=_MOST_EVENTS)
        self._started_at = now()
        self._num_swaps = 0
        self._has_led = False
        self._read_registry_at = self._read_memory_at = float("-inf")
        self._stopping = threading.Event()
        self.heartbeat = LoopHeartbeat(_LONGEST_TURN_S)
        metrics.turn_age.set_function(lambda: self.heartbeat.age_s)

    def stop(self) -> None:
        """Make ``run`` drain the workers and return."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until stopped. Raises Conflict if another host has the name."""
        give_up_at = self._clock() + _OTHER_ENDS_S
        is_away = False
        try:
            while not self._stopping.is_set():
                try:
                    with lead(self._db, _lock_key(self._name)) as held:
                        is_away = False
                        if held is not None:
                            self._end_left_over()
                            self._serve(held)
                        elif not self._workers and self._clock() > give_up_at:
                            raise Conflict(f"a host named {self._name} is running: stop it, or give another --name")
                except Unavailable as error:
                    if not is_away:
                        log.warning("host_not_leading", error=error.message)
                    is_away = True
                self.heartbeat.beat()
                self._look()
                self._stopping.wait(_RETRY_S)
        finally:
            self._end_workers()

    def _serve(self, held: Leadership) -> None:
        self._has_led = True
        log.info("host_leading", host=self._name, budget_bytes=self._rules.budget_bytes)
        while not self._stopping.is_set():
            self.heartbeat.beat()
            held.check()
            self._turn()
            self._stopping.wait(LOOK_S)

    def _turn(self) -> None:
        """Look, decide, act and report once. Raises Unavailable."""
        self._look()
        if self._clock() - self._read_registry_at > _REGISTRY_S:
            found = (one for one in read_hosted_versions(self._db) if self._is_ours(one))
            self._versions = {version.queue: version for version in found}
            self._read_registry_at = self._clock()
        loads = self._loads(read_waiting_work(self._db))
        residents = self._residents(loads)
        plan = decide(list(loads.values()), residents, self._rules)
        for drain in plan.drains:
            self._drain(drain)
        report = self._report(plan, loads, self._residents(loads))
        wanted = [self._new_place(loads[start.queue]) for start in plan.starts]
        stored = write_report(self._db, report, wanted)
        granted = {place.queue for place in stored.places}
        for start in plan.starts:
            if start.queue in granted:
                self._start(start, loads[start.queue])
        self._metrics.show(stored)

    def _loads(self, work: WaitingWork) -> dict[str, VersionLoad]:
        """Return the load of every version that may have a place, or has one."""
        others = {
            place.queue: host.name for host in read_hosts(self._db) if host.name != self._name for place in host.places
        }
        elsewhere = {
            queue: f"the host {name} serves it" for queue, name in others.items() if queue not in self._workers
        }
        elsewhere |= {
            queue: "a worker outside this host serves it"
            for queue, number in work.workers.items()
            if number and queue not in self._workers and queue not in elsewhere
        }
        return {queue: self._load(version, work, elsewhere) for queue, version in self._versions.items()}

    def _load(self, version: HostedVersion, work: WaitingWork, elsewhere: Mapping[str, str]) -> VersionLoad:
        queue, at = version.queue, self._clock()
        found = work.of(version)
        tokens = max(found.tokens, int(version.is_unverified))
        age_s = found.oldest_age_s or (now() - version.created_at).total_seconds() * version.is_unverified
        worker = self._workers.get(queue)
        if worker is not None:
            wait_s = age_s
            is_busy = bool(tokens or found.running_tokens)
            self._history.idle_s(queue, at, is_busy=is_busy)
        elif tokens:
            wait_s = self._history.wait_s(queue, age_s, at)
        else:
            self._history.waits_no_more(queue, at)
            wait_s = 0.0
        return VersionLoad(
            queue,
            self._counted.get(queue) or self._needs.memory_bytes(version),
            self._needs.load_s(version),
            tokens,
            wait_s,
            found.class_rank,
            deadline_in_s=found.deadline_in_s,
            obstacle=elsewhere.get(queue) or self._history.obstacle(queue, at),
            running_tokens=found.running_tokens,
        )

    def _residents(self, loads: Mapping[str, VersionLoad]) -> list[Resident]:
        at = self._clock()
        return [
            Resident(
                queue,
                max(self._counted[queue], self._used.get(queue, 0)),
                worker.state,
                worker.in_state_s,
                self._history.idle_s(queue, at, is_busy=False),
            )
            for queue, worker in self._workers.items()
        ]

    def _look(self) -> None:
        """Note what became of the workers."""
        at = self._clock()
        is_memory_due = at - self._read_memory_at > _MEMORY_S
        for queue, worker in list(self._workers.items()):
            before = worker.state
            took_s = worker.in_state_s
            if not worker.look():
                self._ended(queue, worker)
                continue
            if before is PlaceState.STARTING and worker.state is PlaceState.SERVING:
                self._serves(queue, took_s)
            if is_memory_due:
                self._used[queue] = used_memory(worker.pid)
                if worker.state is PlaceState.SERVING:
                    self._needs.saw_memory(queue, self._used[queue])
            if worker.state is PlaceState.SERVING and worker.in_state_s > _STEADY_S:
                self._history.is_steady(queue)
        if is_memory_due:
            self._read_memory_at = at

    def _serves(self, queue: str, took_s: float) -> None:
        self._needs.saw_start(queue, took_s)
        self._metrics.starts.labels("served").inc()
        waited_s = self._history.waits_no_more(queue, self._clock())
        if waited_s is not None:
            self._metrics.waits.observe(waited_s)
        self._note("serving", queue, f"ready after {took_s:.1f} s")

    def _ended(self, queue: str, worker: ResidentWorker) -> None:
        """Note the end of a worker: the one that was asked for, or a failure."""
        del self._workers[queue]
        self._counted.pop(queue)
        self._used.pop(queue, None)
        self._history.left(queue, self._clock())
        if worker.state is PlaceState.DRAINING:
            self._note("ended", queue, "it has drained" if worker.exit_code == 0 else worker.why_ended())
            return
        if worker.state is PlaceState.STARTING:
            self._metrics.starts.labels("failed").inc()
        reason = worker.why_ended()
        pause_s = self._history.failed(queue, self._clock())
        self._note("failed", queue, f"{reason}; again in {pause_s:.0f} s")

    def _drain(self, drain: Displacement) -> None:
        self._workers[drain.queue].drain()
        self._num_swaps += 1
        self._metrics.swaps.inc()
        self._note("draining", drain.queue, drain.reason)

    def _start(self, start: Start, load: VersionLoad) -> None:
        version = self._versions[start.queue]
        is_server = version.engine is not None and version.engine.url is None
        limit_s = max(_SLOWEST_SERVER_START_S if is_server else _SLOWEST_START_S, 10 * load.load_s)
        self._workers[start.queue] = ResidentWorker(self._settings, self._name, start.queue, start_limit_s=limit_s)
        self._counted[start.queue] = load.memory_bytes
        self._note("started", start.queue, start.reason)

    def _note(self, kind: EventKind, queue: str, reason: str) -> None:
        self._events.appendleft(HostEvent(at=now(), queue=queue, kind=kind, reason=reason))
        log.info("host_worker", queue=queue, kind=kind, reason=reason)

    def _report(
        self, plan: PlacementPlan, loads: Mapping[str, VersionLoad], residents: Sequence[Resident]
    ) -> HostReport:
        places = [
            HostPlace(
                queue=one.queue,
                state=one.state,
                since=_ago(one.in_state_s),
                memory_bytes=one.memory_bytes,
                used_bytes=self._used.get(one.queue, 0),
                pid=self._workers[one.queue].pid,
            )
            for one in sorted(residents, key=lambda one: one.queue)
        ]
        return HostReport(
            name=self._name,
            started_at=self._started_at,
            budget_bytes=self._rules.budget_bytes,
            places=tuple(places),
            outlooks=tuple(self._outlooks(plan, loads, residents)),
            num_swaps=self._num_swaps,
            events=tuple(self._events),
        )

    def _outlooks(
        self, plan: PlacementPlan, loads: Mapping[str, VersionLoad], residents: Sequence[Resident]
    ) -> list[HostOutlook]:
        soon = forecast(list(loads.values()), residents, self._rules)
        found = []
        for queue, load in loads.items():
            text = plan.refused.get(queue) or load.obstacle
            if queue in soon or text is not None:
                in_s = None if queue not in soon else round(soon[queue], 1)
                found += [HostOutlook(queue=one, in_s=in_s, text=text) for one in self._versions[queue].queues]
        return found

    def _new_place(self, load: VersionLoad) -> HostPlace:
        return HostPlace(queue=load.queue, state=PlaceState.STARTING, since=now(), memory_bytes=load.memory_bytes)

    def _end_left_over(self) -> None:
        """Wait for the workers of an earlier host of this name that was killed: they drain."""
        if self._workers:
            return
        report = last_report(self._db, self._name)
        pids = [place.pid for place in report.places if place.pid] if report else []
        num_left = end_left_over(self._name, pids, self._settings.drain_s + _OTHER_ENDS_S)
        if num_left:
            log.info("host_left_over_ended", num_workers=num_left)

    def _end_workers(self) -> None:
        for worker in self._workers.values():
            if worker.state is not PlaceState.DRAINING:
                worker.drain()
        while self._workers:
            self._look()
            time.sleep(0.05)
        if self._has_led:  # else the report is that of the host that has the name
            try:
                remove_report(self._db, self._name)
            except HeadraceError as error:
                log.warning("host_not_removed", error=error.message)
        self._db.close()


def _lock_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"headrace model host {name}".encode()).digest()[:8], signed=True)


def _ago(seconds: float) -> datetime:
    return now() - timedelta(seconds=seconds)

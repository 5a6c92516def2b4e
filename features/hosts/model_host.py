"""The loop of a model host: reads what waits, decides who has a place, starts and drains workers, and reports.

read (registry, work, other hosts) ──▶ ``placement.decide`` ──▶ drain, start ──▶ report in Postgres

"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta

from headrace.features.hosts.host_loop import HostLoop
from headrace.features.hosts.host_metrics import HostMetrics
from headrace.features.hosts.kept_servers import KeptServers
from headrace.features.hosts.placement import (
    Displacement,
    PlacementPlan,
    Resident,
    Rules,
    Start,
    VersionLoad,
    decide,
    forecast,
)
from headrace.features.hosts.resident_workers import ResidentWorker
from headrace.features.hosts.version_history import VersionHistory
from headrace.features.hosts.version_needs import VersionNeeds, used_memory
from headrace.features.hosts.waiting_work import WaitingWork, read_waiting_work
from headrace.store.errors import NotFound
from headrace.store.hosts.host_reports import (
    HostOutlook,
    HostPlace,
    HostReport,
    PlaceState,
    now,
    read_hosts,
    write_report,
)
from headrace.store.hosts.hosted_versions import HostedVersion, read_hosted_versions
from headrace.store.settings import Settings

_REGISTRY_S = 2.0
_MEMORY_S = 2.0
_STEADY_S = 60.0
_SLOWEST_START_S = 300.0
_SLOWEST_SERVER_START_S = 1800.0


class ModelHost(HostLoop):
    """One host with a memory budget. ``is_ours``: whether a version may have a place here.

    ``sleep_bytes``: main memory, beside the budget, for inference servers that sleep.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        rules: Rules,
        metrics: HostMetrics,
        *,
        is_ours: Callable[[HostedVersion], bool] = lambda _version: True,
        sleep_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(settings, name, metrics, rules.budget_bytes, clock)
        self._rules = rules
        self._is_ours = is_ours
        self._workers: dict[str, ResidentWorker] = {}
        self._counted: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._versions: Mapping[str, HostedVersion] = {}
        self._history = VersionHistory()
        self._needs = VersionNeeds()
        self._servers = KeptServers(settings, self._db, sleep_bytes)
        self._num_swaps = 0
        self._read_registry_at = self._read_memory_at = float("-inf")

    def _running(self) -> Collection[ResidentWorker]:
        return self._workers.values()

    def _turn(self) -> None:
        """Look, decide, act and report once. Raises Unavailable."""
        self.look()
        if self._clock() - self._read_registry_at > _REGISTRY_S:
            found = (one for one in read_hosted_versions(self._db) if self._is_ours(one))
            self._versions = {version.queue: version for version in found}
            self._read_registry_at = self._clock()
            self._servers.tend(self._versions)
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

    def look(self) -> None:
        """Note what became of the workers."""
        at = self._clock()
        is_memory_due = at - self._read_memory_at > _MEMORY_S
        for queue, worker in list(self._workers.items()):
            before = worker.state
            took_s = worker.in_state_s
            failure = self._servers.failure(queue)
            if failure is not None:
                worker.kill()
            if failure is not None or not worker.look():
                if self._servers.rests(queue, may_sleep=worker.has_drained, weights=self._weights(queue)):
                    self._ended(queue, worker, failure)
                continue
            if before is PlaceState.STARTING and worker.state is PlaceState.SERVING:
                self._serves(queue, took_s)
            if is_memory_due:
                self._used[queue] = used_memory(worker.pid) + self._servers.used(queue)
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

    def _weights(self, queue: str) -> int:
        return self._needs.weights(self._versions[queue]) if queue in self._versions else 0

    def _ended(self, queue: str, worker: ResidentWorker, failure: str | None = None) -> None:
        """Note the end of a worker: the one that was asked for, or a failure, of its server if that has one."""
        del self._workers[queue]
        self._counted.pop(queue)
        self._used.pop(queue, None)
        self._history.left(queue, self._clock())
        if worker.state is PlaceState.DRAINING:
            drained = "it has drained" + "; its server sleeps" * (queue in self._servers.asleep)
            self._note("ended", queue, drained if worker.has_drained else worker.why_ended())
            return
        if worker.state is PlaceState.STARTING:
            self._metrics.starts.labels("failed").inc()
        reason = failure or worker.why_ended()
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
        try:
            server = self._servers.address_for(version) if self._servers.keeps(version) else None
        except NotFound as error:  # deleted a moment ago
            self._note("failed", start.queue, error.message)
            return
        self._workers[start.queue] = ResidentWorker(
            self._settings, self._name, start.queue, start_limit_s=limit_s, server=server
        )
        self._counted[start.queue] = load.memory_bytes
        self._note("started", start.queue, start.reason)

    def _end_workers(self) -> None:
        self._servers.keep_none()
        try:
            super()._end_workers()
        finally:
            self._servers.close()

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
            asleep=self._servers.asleep,
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


def _ago(seconds: float) -> datetime:
    return now() - timedelta(seconds=seconds)

"""A host that has as many workers of each queue as the leading dispatcher decides (docs/autoscaling.md).

    read (``store.scheduling.scale_decisions``) ──▶ start, drain ──▶ report in Postgres

A worker that it drains ends its running jobs first, however long they take within HEADRACE_AUTOSCALE_DRAIN_S. One that
died is started again after a pause. A queue for which nothing is decided keeps its workers.
"""

import os
import time
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from itertools import count

from headrace.features.hosts.host_loop import HostLoop
from headrace.features.hosts.host_metrics import HostMetrics
from headrace.features.hosts.resident_workers import ResidentWorker
from headrace.features.hosts.version_history import VersionHistory
from headrace.features.hosts.version_needs import VersionNeeds, used_memory
from headrace.store.db.presence import GONE_AFTER_S
from headrace.store.hosts.host_reports import HostOutlook, HostPlace, HostReport, PlaceState, now, write_report
from headrace.store.hosts.hosted_versions import HostedVersion, read_hosted_versions
from headrace.store.scheduling.scale_decisions import StoredDecision, read_decisions
from headrace.store.settings import Settings

_REGISTRY_S = 2.0
_MEMORY_S = 2.0
_BETWEEN_S = 2.0  # of two hosts that report in time, one's last report is at most so much older than the other's
_STEADY_S = 60.0
_SLOWEST_START_S = 300.0


class ScaledHost(HostLoop):
    """One host of autoscaled queues. ``is_ours``: whether the version may have workers here."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        metrics: HostMetrics,
        *,
        is_ours: Callable[[HostedVersion], bool] = lambda _version: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(settings, name, metrics, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), clock)
        self._is_ours = is_ours
        self._workers: list[ResidentWorker] = []
        self._used: dict[int, int] = {}
        self._versions: Mapping[str, HostedVersion] = {}
        self._history = VersionHistory()
        self._needs = VersionNeeds()
        self._numbers = count(1)
        self._read_registry_at = self._read_memory_at = float("-inf")
        self._reported_at = self._asks_from = clock()

    def _running(self) -> Collection[ResidentWorker]:
        return self._workers

    def _turn(self) -> None:
        """Look, compare with what is decided, start and drain, and report. Raises Unavailable."""
        self.look()
        if self._clock() - self._read_registry_at > _REGISTRY_S:
            found = (one for one in read_hosted_versions(self._db) if self._is_ours(one))
            self._versions = {version.queue: version for version in found}
            self._read_registry_at = self._clock()
        decisions = {queue: one for queue, one in read_decisions(self._db).items() if queue in self._versions}
        missing = {queue: one.replicas - len(self._staying(queue)) for queue, one in decisions.items()}
        for queue, number in missing.items():
            for worker in self._staying(queue)[: max(0, -number)]:
                worker.drain()
                self._note("draining", queue, f"{decisions[queue].replicas} are wanted: {decisions[queue].reason}")
        startable = [queue for queue, number in missing.items() if number > 0 and self._obstacle(queue) is None]
        # Another host may serve the queue: of two, one is granted the place. After a time without Postgres the reports
        # of all hosts are old, so this host asks for no place until those that live have had time to report.
        if self._clock() - self._reported_at > GONE_AFTER_S - _BETWEEN_S:
            self._asks_from = self._clock() + GONE_AFTER_S
        wanted = [
            HostPlace(queue=one, state=PlaceState.STARTING, since=now(), memory_bytes=0)
            for one in startable
            if self._clock() >= self._asks_from
        ]
        stored = write_report(self._db, self._report(decisions), wanted)
        self._reported_at = self._clock()
        granted = {place.queue for place in stored.places}
        for queue in startable:
            for _ in range(missing[queue] if queue in granted else 0):
                self._start(decisions[queue])
        self._metrics.show(stored)

    def _staying(self, queue: str) -> list[ResidentWorker]:
        """Return the workers of the queue that do not drain, those that load first, then the youngest."""
        found = [one for one in self._workers if one.queue == queue and one.state is not PlaceState.DRAINING]
        return sorted(found, key=lambda one: (one.state is PlaceState.SERVING, one.in_state_s))

    def _obstacle(self, queue: str) -> str | None:
        return self._history.obstacle(queue, self._clock())

    def _start(self, decision: StoredDecision) -> None:
        settings = self._settings.model_copy(update={"drain_s": self._settings.autoscale_drain_s})
        limit_s = max(_SLOWEST_START_S, 10 * self._needs.load_s(self._versions[decision.queue]))
        self._workers.append(
            ResidentWorker(settings, self._name, decision.queue, start_limit_s=limit_s, number=next(self._numbers))
        )
        self._note("started", decision.queue, f"{decision.replicas} are wanted: {decision.reason}")

    def look(self) -> None:
        """Note what became of the workers."""
        is_memory_due = self._clock() - self._read_memory_at > _MEMORY_S
        for worker in list(self._workers):
            before, took_s = worker.state, worker.in_state_s
            if not worker.look():
                self._ended(worker)
                continue
            if before is PlaceState.STARTING and worker.state is PlaceState.SERVING:
                self._needs.saw_start(worker.queue, took_s)
                self._metrics.starts.labels("served").inc()
                self._note("serving", worker.queue, f"ready after {took_s:.1f} s")
            if is_memory_due:
                self._used[worker.pid] = used_memory(worker.pid)
            if worker.state is PlaceState.SERVING and worker.in_state_s > _STEADY_S:
                self._history.is_steady(worker.queue)
        if is_memory_due:
            self._read_memory_at = self._clock()

    def _ended(self, worker: ResidentWorker) -> None:
        """Note the end of a worker: the one that was asked for, or a failure."""
        self._workers.remove(worker)
        self._used.pop(worker.pid, None)
        if worker.state is PlaceState.DRAINING:
            self._note("ended", worker.queue, "it has drained" if worker.exit_code == 0 else worker.why_ended())
            return
        if worker.state is PlaceState.STARTING:
            self._metrics.starts.labels("failed").inc()
        pause_s = self._history.failed(worker.queue, self._clock())
        self._note("failed", worker.queue, f"{worker.why_ended()}; again in {pause_s:.0f} s")

    def _report(self, decisions: Mapping[str, StoredDecision]) -> HostReport:
        places = [
            HostPlace(
                queue=one.queue,
                state=one.state,
                since=now() - timedelta(seconds=one.in_state_s),
                memory_bytes=self._used.get(one.pid, 0),
                used_bytes=self._used.get(one.pid, 0),
                pid=one.pid,
            )
            for one in sorted(self._workers, key=lambda one: (one.queue, one.pid))
        ]
        return HostReport(
            name=self._name,
            started_at=self._started_at,
            budget_bytes=self._budget_bytes,
            places=tuple(places),
            outlooks=tuple(self._outlooks(decisions)),
            events=tuple(self._events),
        )

    def _outlooks(self, decisions: Mapping[str, StoredDecision]) -> list[HostOutlook]:
        """Return what a queue without a worker may expect: a job raises its number from zero."""
        found = []
        for queue in decisions:
            text = self._obstacle(queue)
            in_s = None if text else round(self._needs.load_s(self._versions[queue]), 1)
            found += [HostOutlook(queue=one, in_s=in_s, text=text) for one in self._versions[queue].queues]
        return found

    def _end_workers(self) -> None:
        """Let the workers drain for HEADRACE_DRAIN_S; then they hand their jobs back."""
        for worker in self._workers:
            if worker.state is not PlaceState.DRAINING:
                worker.drain()
        hurry_at = self._clock() + self._settings.drain_s
        while self._workers and self._clock() < hurry_at:
            self.look()
            self.pause()
        for worker in self._workers:
            worker.hurry()
        super()._end_workers()

"""The duties that end, requeue or free jobs: leases, deadlines, rejected versions, answers of the cache."""

import time
from collections.abc import Callable, Iterable

import structlog

from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.jobs import sweeps
from headrace.store.jobs.sweeps import LostAttempt
from headrace.store.metrics.dispatcher_metrics import DispatcherMetrics
from headrace.store.schema.job_states import JobState
from headrace.store.streams.stream_log import StreamPublisher
from headrace.store.tracing.tracing import OFF, Tracing, read_traceparent
from headrace.workers.dispatcher.lost_attempts import lost_attempt_spans

log = structlog.get_logger(__name__)

SWEEP_ROWS = 500


class OutageGrace:
    """Grace time after an outage of Postgres: a lease that expires because no worker could renew it is no crash.

    Times are of the monotonic clock. ``answered`` must be called often: a long time without a call looks like an
    outage.
    """

    def __init__(self, lease_s: float, sweep_s: float, now: float) -> None:
        # A worker renews every third of a lease, so a shorter outage than this costs no lease.
        self._longest_s = lease_s / 2 + sweep_s
        # A lease that was renewed just before the outage expires this much after it.
        self._grace_s = lease_s + 2 * sweep_s
        self._answered_at = now
        self._grace_until = now

    def answered(self, now: float) -> None:
        """Note that Postgres answered."""
        if now - self._answered_at > self._longest_s:
            self._grace_until = now + self._grace_s
        self._answered_at = now

    def refused(self, now: float) -> None:
        """Note that Postgres refused writes, as with a full disk: then no lease was renewed either."""
        self._grace_until = now + self._grace_s

    def blames(self, now: float) -> bool:
        """Return True if an expired lease is its worker's fault."""
        return now >= self._grace_until


class JobSweeper:
    """Sweeps expired leases and passed deadlines. ``streams`` ends open streams of the jobs that ended.

    ``report_lost`` gets what ``SweepResult.lost`` has; it must not raise.
    """

    def __init__(
        self,
        db: Database,
        streams: StreamPublisher,
        outage_grace: OutageGrace,
        metrics: DispatcherMetrics,
        *,
        lease_s: float,
        tracing: Tracing = OFF,
        report_lost: Callable[[Iterable[tuple[str, str, JobState]]], None] = lambda _lost: None,
    ) -> None:
        self._db = db
        self._streams = streams
        self._outage_grace = outage_grace
        self._metrics = metrics
        self._lease_s = lease_s
        self._tracing = tracing
        self._report_lost = report_lost

    def sweep_leases(self) -> bool:
        """Requeue jobs with expired leases, in batches; return whether there may be more."""
        # Before the sweep, so that an outage that ends now is noticed before its leases are swept.
        self._db.ping()
        self._outage_grace.answered(time.monotonic())
        blame = self._outage_grace.blames(time.monotonic())
        try:
            swept = sweeps.sweep_leases(self._db, SWEEP_ROWS, blame=blame)
        except Unavailable:
            self._outage_grace.refused(time.monotonic())
            raise
        if self._tracing.is_on:
            self._record(swept.traced)
        if swept.requeued or swept.ended:
            counts = {"requeued": swept.requeued, "failed": swept.failed, "cancelled": swept.cancelled}
            for outcome, num_jobs in counts.items():
                self._metrics.leases_expired.labels(outcome).inc(num_jobs)
            log.info("dispatcher.leases_swept", blamed=blame, **counts)
        self.nudge(swept.ended)
        if swept.lost:
            self._report_lost(swept.lost)
        return swept.num_jobs >= SWEEP_ROWS

    def _record(self, lost: Iterable[LostAttempt]) -> None:
        for attempt in lost:
            if (accept := read_traceparent(attempt.traceparent)) is not None:
                for span in lost_attempt_spans(attempt, accept):
                    self._tracing.record(span)

    def expire_deadlines(self) -> bool:
        """End jobs after their deadlines, in batches; return whether there may be more."""
        expired = sweeps.expire_overdue(self._db, SWEEP_ROWS, grace_s=2 * self._lease_s)
        if expired:
            self._metrics.jobs_expired.inc(len(expired))
            log.info("dispatcher.expired", num_jobs=len(expired))
        self.nudge(expired)
        return len(expired) >= SWEEP_ROWS

    def start_due(self) -> bool:
        """Let jobs go whose time has come, in batches; return whether there may be more."""
        num_jobs = sweeps.start_due(self._db, SWEEP_ROWS)
        if num_jobs:
            log.info("dispatcher.started_due", num_jobs=num_jobs)
        return num_jobs >= SWEEP_ROWS

    def fail_rejected(self) -> bool:
        """Fail the queued jobs of rejected versions, in batches; return whether there may be more."""
        failed = sweeps.fail_rejected(self._db, SWEEP_ROWS)
        if failed:
            log.info("dispatcher.rejected_failed", num_jobs=len(failed))
        self.nudge(failed)
        return len(failed) >= SWEEP_ROWS

    def nudge(self, job_ids: Iterable[str]) -> None:
        """End open streams of these jobs now, not at their next poll of Postgres."""
        if job_ids:
            self._streams.nudge(job_ids)

"""The metrics of one dispatcher. The leader alone has those of queues and sweeps.

The state of the queues is measured by a duty, so that a scrape costs Postgres nothing.
"""

from collections import Counter as Sums
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from headrace.store.metrics.registry import DutyMetrics, begin, new_registry, render
from headrace.store.payloads.job_payload import CLASS_NAMES
from headrace.store.scheduling.backlog import TenantBacklog
from headrace.store.scheduling.queue_ages import QueueAge
from headrace.store.tracing.tracing import OFF, Tracing


class DispatcherMetrics:
    """The metrics, each as an attribute, in a registry of their own."""

    def __init__(self, tracing: Tracing = OFF) -> None:
        self.registry = new_registry(tracing)
        registry = self.registry
        self.queues = QueueGauges(registry)
        self.leading = Gauge("headrace_dispatcher_leading", "1 while this dispatcher leads", registry=registry)
        self.turn_age = Gauge(
            "headrace_dispatcher_turn_age_seconds",
            "how long the longest duty under way has been running, or the loop that keeps the lead has not turned",
            registry=registry,
        )
        self.duties = DutyMetrics(registry)
        self.leases_expired = Counter(
            "headrace_leases_expired",
            "jobs taken from workers that did not renew their lease, by what became of them",
            ["outcome"],
            registry=registry,
        )
        begin(self.leases_expired, "requeued", "failed", "cancelled")
        self.jobs_expired = Counter(
            "headrace_jobs_expired", "jobs that the dispatcher ended after their deadline", registry=registry
        )
        self.flows_stuck = Gauge(
            "headrace_flows_stuck",
            "running jobs of several steps without a step that runs or may run",
            registry=registry,
        )

    def render(self) -> bytes:
        """Return the page for Prometheus."""
        return render(self.registry)

    def clear(self) -> None:
        """Drop what only the leader knows: this dispatcher does not lead any more, and another one tells it."""
        self.queues.clear()
        self.flows_stuck.set(0)


class QueueGauges:
    """The state of the queues at the last measurement. Queues without jobs and workers have no series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        by_class = ["queue", "class"]
        self.tokens = Gauge(
            "headrace_queue_backlog_tokens",
            "tokens of the queued jobs, prompt and max_tokens",
            by_class,
            registry=registry,
        )
        self.oldest = Gauge(
            "headrace_queue_oldest_age_seconds", "age of the oldest queued job", by_class, registry=registry
        )
        self.deadline = Gauge(
            "headrace_queue_earliest_deadline_timestamp_seconds",
            "earliest deadline of a queued job, as Unix time",
            by_class,
            registry=registry,
        )
        self.workers = Gauge("headrace_queue_workers", "live workers of the queue", ["queue"], registry=registry)
        self.wanted = Gauge(
            "headrace_queue_wanted_workers",
            "workers that the queue should have, for queues of HEADRACE_AUTOSCALE",
            ["queue"],
            registry=registry,
        )
        self.paused = Gauge("headrace_queue_paused", "1 for a paused queue", ["queue"], registry=registry)
        self.tenants = Gauge(
            "headrace_tenant_backlog_tokens",
            "tokens of the queued jobs of the largest tenants, as many as HEADRACE_METRICS_TENANTS",
            ["tenant"],
            registry=registry,
        )

    def clear(self) -> None:
        """Drop all series: this dispatcher does not lead."""
        self.wanted.clear()
        self._clear_measured()

    def show_wanted(self, wanted: Mapping[str, int]) -> None:
        """Replace the numbers of workers that queues should have."""
        self.wanted.clear()
        for queue, replicas in wanted.items():
            self.wanted.labels(queue).set(replicas)

    def _clear_measured(self) -> None:
        for gauge in (self.tokens, self.oldest, self.deadline, self.workers, self.paused, self.tenants):
            gauge.clear()

    def set(
        self,
        shares: Sequence[TenantBacklog],
        ages: Iterable[QueueAge],
        workers: Mapping[str, int],
        paused: Iterable[str],
        *,
        num_tenants: int,
    ) -> None:
        """Replace all series but those of wanted workers."""
        self._clear_measured()
        for share in shares:
            self.tokens.labels(share.queue, CLASS_NAMES[share.class_rank]).inc(share.queued.tokens)
            self.workers.labels(share.queue).set(0)
        for age in ages:
            labels = age.queue, CLASS_NAMES[age.class_rank]
            if age.oldest_age_s is not None:
                self.oldest.labels(*labels).set(age.oldest_age_s)
            if age.earliest_deadline is not None:
                self.deadline.labels(*labels).set(age.earliest_deadline.timestamp())
        for queue, num_workers in workers.items():
            self.workers.labels(queue).set(num_workers)
        for queue in paused:
            self.paused.labels(queue).set(1)
        for tenant_id, tokens in largest(shares, num_tenants):
            self.tenants.labels(tenant_id).set(tokens)


def largest(shares: Iterable[TenantBacklog], num_tenants: int) -> list[tuple[str, int]]:
    """Return the tenants with most queued tokens, at most ``num_tenants``, each with its tokens."""
    sums: Sums[str] = Sums()
    for share in shares:
        sums[share.tenant_id] += share.queued.tokens
    return sums.most_common(num_tenants)

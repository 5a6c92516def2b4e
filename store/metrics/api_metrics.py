"""The metrics of one API process: accepted jobs, refusals, latencies, streams, queue depths.

Queue depths are read from Postgres at each scrape, so every API process has the same: take their maximum.
"""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from headrace.store.metrics.registry import SHORT_SECONDS, CommitMetrics, DutyMetrics, begin, new_registry, render
from headrace.store.payloads.job_payload import CLASS_NAMES, ServiceClass
from headrace.store.scheduling.backlog import TenantBacklog
from headrace.store.tracing.tracing import OFF, Tracing


class ApiMetrics:
    """The metrics, each as an attribute, in a registry of their own."""

    def __init__(self, tracing: Tracing = OFF) -> None:
        self.registry = registry = new_registry(tracing)
        self.commits = CommitMetrics(registry)
        self.duties = DutyMetrics(registry)
        self.jobs_accepted = Counter(
            "headrace_jobs_accepted",
            "Jobs accepted; replayed: a repeated request got the job of the first one",
            ["model", "version", "task", "class", "replayed"],
            registry=registry,
        )
        self.refused = Counter("headrace_requests_refused", "Requests refused, by code", ["code"], registry=registry)
        self.latency = Histogram(
            "headrace_request_seconds",
            "Time to the first byte of the response",
            ["method", "route", "status"],
            buckets=SHORT_SECONDS,
            registry=registry,
        )
        self.policy_actions = Counter(
            "headrace_input_policy_actions",
            "What policies of tenants did to inputs: findings by action",
            ["action"],
            registry=registry,
        )
        self.cache_results = Counter(
            "headrace_cache_results",
            "Accepted requests that the response cache could serve, by what it did",
            ["result"],
            registry=registry,
        )
        begin(self.cache_results, "hit", "shared", "miss", "bypass")
        self._add_streams()
        self._add_services()

    def _add_streams(self) -> None:
        registry = self.registry
        self.streams_open = Gauge("headrace_streams_open", "Event streams being sent", registry=registry)
        self.hub_connected = Gauge(
            "headrace_hub_connected", "1 while streams hear what workers publish in Redis", registry=registry
        )
        self.hub_errors = Counter(
            "headrace_hub_errors",
            "What cannot be read in Redis (`message`, `log_entry`), and connections lost or refused (`connection`)",
            ["what"],
            registry=registry,
        )
        begin(self.hub_errors, "connection", "log_entry", "message")
        self.loop_lag = Histogram(
            "headrace_event_loop_lag_seconds",
            "How late the event loop ran a timer, measured four times a second",
            buckets=SHORT_SECONDS,
            registry=registry,
        )

    def _add_services(self) -> None:
        registry = self.registry
        self.postgres_up = Gauge(
            "headrace_postgres_up", "1 if Postgres answered this scrape within two seconds", registry=registry
        )
        self.queue_depth = Gauge(
            "headrace_queue_depth",
            "Queued jobs; `waiting` in Postgres, `announced` to the workers",
            ["queue", "class", "place"],
            registry=registry,
        )

    def count_accepted(
        self, model: str, version: int, task: str, service_class: ServiceClass, *, replayed: bool
    ) -> None:
        """Count a job that was accepted."""
        self.jobs_accepted.labels(model, version, task, service_class.value, str(replayed).lower()).inc()

    def cache_hit_rate(self) -> float | None:
        """Return the share of requests that got the answer of another one; None if the cache had none to serve."""
        name = "headrace_cache_results_total"
        found = {one: self.registry.get_sample_value(name, {"result": one}) or 0 for one in ("hit", "shared", "miss")}
        num_served = sum(found.values())
        return None if not num_served else (num_served - found["miss"]) / num_served

    def render(self, shares: Iterable[TenantBacklog] | None) -> bytes:
        """Return the page for Prometheus. ``shares`` is the backlog, None while Postgres is away."""
        self.postgres_up.set(shares is not None)
        self.queue_depth.clear()
        for share in shares or ():
            name = CLASS_NAMES[share.class_rank]
            self.queue_depth.labels(share.queue, name, "waiting").inc(share.waiting.jobs)
            self.queue_depth.labels(share.queue, name, "announced").inc(share.announced.jobs)
        return render(self.registry)

"""Prometheus metrics of one API process: accepted jobs, refusals by code, latencies, open streams.

Labels are route templates and codes, never ids or texts. Queue depths are read from Postgres at each scrape.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from store.scheduling.backlog import TenantBacklog

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics, in a registry of their own, so that two applications in one process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.accepted = Counter(
            "headrace_jobs_accepted", "Jobs accepted", ["model", "replayed"], registry=self.registry
        )
        self.refused = Counter("headrace_requests_refused", "RefusalLog by code", ["code"], registry=self.registry)
        self.latency = Histogram(
            "headrace_request_seconds",
            "Time to the first byte of the response",
            ["method", "route", "status"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.streams_open = Gauge("headrace_streams_open", "Event streams being sent", registry=self.registry)
        self.hub_connected = Gauge(
            "headrace_hub_connected", "1 while streams hear what workers publish in Redis", registry=self.registry
        )
        self.hub_errors = Counter(
            "headrace_hub_errors",
            "What cannot be read in Redis (`message`, `log_entry`), and connections lost or refused (`connection`)",
            ["what"],
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "headrace_queue_depth",
            "Queued jobs; `waiting` in Postgres, `announced` to the workers",
            ["queue", "place"],
            registry=self.registry,
        )

    def render(self, shares: Iterable[TenantBacklog]) -> bytes:
        """Return the exposition text."""
        self.queue_depth.clear()
        for share in shares:
            self.queue_depth.labels(share.queue, "waiting").inc(share.waiting.jobs)
            self.queue_depth.labels(share.queue, "announced").inc(share.announced.jobs)
        return generate_latest(self.registry)

"""The metrics of one model host. Its workers have pages of their own."""

from prometheus_client import Counter, Gauge, Histogram

from headrace.store.hosts.host_reports import HostReport, PlaceState
from headrace.store.metrics.registry import SECONDS, begin, new_registry, render
from headrace.store.tracing.tracing import OFF


class HostMetrics:
    """The metrics, each as an attribute, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = new_registry(OFF)
        self.budget = Gauge("headrace_host_memory_budget_bytes", "memory for the workers", registry=registry)
        self.needed = Gauge(
            "headrace_host_memory_needed_bytes", "memory that the workers are counted with", registry=registry
        )
        self.used = Gauge("headrace_host_memory_used_bytes", "memory that the workers use", registry=registry)
        self.places = Gauge("headrace_host_places", "model versions with a place", ["state"], registry=registry)
        self.starts = Counter(
            "headrace_host_starts", "starts of workers: served, failed", ["outcome"], registry=registry
        )
        begin(self.starts, "served", "failed")
        self.swaps = Counter("headrace_host_swaps", "model versions that gave their place to others", registry=registry)
        self.waits = Histogram(
            "headrace_host_place_wait_seconds",
            "from the first waiting job of a version without a place until its worker served",
            buckets=SECONDS,
            registry=registry,
        )
        self.turn_age = Gauge("headrace_host_turn_age_seconds", "time since the loop's last turn", registry=registry)

    def show(self, report: HostReport) -> None:
        """Set the gauges to a report."""
        self.budget.set(report.budget_bytes)
        self.needed.set(report.needed_bytes)
        self.used.set(report.used_bytes)
        for state in PlaceState:
            self.places.labels(state.value).set(sum(place.state is state for place in report.places))

    def render(self) -> bytes:
        """Return the page for Prometheus."""
        return render(self.registry)

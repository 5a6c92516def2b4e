"""What the metrics of all processes share: the registry, the buckets, the page's format, and group commits."""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    Summary,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headrace.store.periodic import failures
from headrace.store.tracing.tracing import Tracing

# A series with the time of creation beside each counter would double the page; Prometheus does not read them.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Buckets for times between 10 ms and an hour: jobs wait and run that long."""

SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Buckets for times that are short when all is well: requests, commits, tokens, turns of a loop."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Buckets for numbers of jobs that share a commit."""


# Read once: it parses the metadata of the package.
_VERSION = version("headrace")


def new_registry(tracing: Tracing) -> CollectorRegistry:
    """Return a registry with the metrics of every process: ``process_*``, ``headrace_build_info`` and the spans'.

    It is not the library's default one, so that two applications in one process do not share it.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    info = Gauge("headrace_build_info", "1; the labels are the versions", ["version", "python"], registry=registry)
    registry.register(TracingCollector(tracing))
    registry.register(PeriodicCollector())
    info.labels(_VERSION, platform.python_version()).set(1)
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """Return the page for Prometheus, of the type ``CONTENT_TYPE``."""
    return generate_latest(registry)


def begin(counter: Counter, *values: str, before: Sequence[str] = ()) -> Counter:
    """Make the series of these values of the last label, at 0, and return the counter.

    ``increase()`` of a series that begins with its first event does not see that event. ``before``: the other labels.
    """
    for value in values:
        counter.labels(*before, value)
    return counter


class TracingCollector(Collector):
    """The counts of the spans of this process, read at each scrape."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def collect(self) -> Iterator[Metric]:
        """Yield the counters."""
        counts = self._tracing.counts()
        yield CounterMetricFamily("headrace_spans_exported", "Spans that the collector took", counts.exported)
        dropped = CounterMetricFamily("headrace_spans_dropped", "Spans dropped, by reason", labels=["reason"])
        dropped.add_metric(["queue_full"], counts.queue_full)
        dropped.add_metric(["not_exported"], counts.not_exported)
        yield dropped


class PeriodicCollector(Collector):
    """The failed turns of the periodic threads of this process, read at each scrape."""

    def collect(self) -> Iterator[Metric]:
        """Yield the counter."""
        failed = CounterMetricFamily("headrace_periodic_failures", "Turns that failed, by thread", labels=["thread"])
        for thread, number in failures.copy().items():
            failed.add_metric([thread], number)
        yield failed


class DutyMetrics:
    """The turns of the duties of a process's keeper (``store.keeper``), by ``duty``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._failures = Counter("headrace_duty_failures", "Parts of turns that failed", ["duty"], registry=registry)
        self._seconds = Summary("headrace_duty_seconds", "Turns and their time", ["duty"], registry=registry)

    def begin(self, duties: Iterable[str]) -> None:
        """Make the series of these duties."""
        for duty in duties:
            self._failures.labels(duty)
            self._seconds.labels(duty)

    def note(self, duty: str, took_s: float, num_failed: int) -> None:
        """Count a turn of a duty, of which so many parts failed."""
        self._failures.labels(duty).inc(num_failed)
        self._seconds.labels(duty).observe(took_s)


class CommitMetrics:
    """Sizes and times of group commits, by what they write: accept, claim, finish, release; read is a query."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.jobs = Histogram(
            "headrace_commit_jobs", "Jobs that shared a commit", ["commit"], buckets=SIZES, registry=registry
        )
        self.seconds = Histogram(
            "headrace_commit_seconds", "Time of a commit", ["commit"], buckets=SHORT_SECONDS, registry=registry
        )

    def observer(self, commit: str) -> Callable[[int, float], None]:
        """Return what ``GroupCommit`` calls after each batch, with its size and its seconds."""
        jobs, seconds = self.jobs.labels(commit), self.seconds.labels(commit)

        def observe(num_jobs: int, took_s: float) -> None:
            jobs.observe(num_jobs)
            seconds.observe(took_s)

        return observe

"""A worker's metrics for Prometheus; ``health`` serves them. No label names a job or a tenant."""

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from models.engine.requests import EngineStats

GAUGES = {
    "running": "requests in the engine's batch",
    "waiting": "requests inside the engine that wait for room",
    "free_blocks": "KV blocks that no request holds",
    "total_blocks": "KV blocks of the pool",
    "max_slots": "requests that may run together: HEADRACE_MAX_SLOTS, and a quarter more for jobs that go ahead",
    "mean_batch": "decode rows of a step that decoded, mean since the start",
    "peak_batch": "most decode rows of one step",
    "last_step_age_s": "seconds since the last step ended, 0 when idle",
}
COUNTERS = {
    "steps": "engine steps",
    "prompt_tokens": "prompt tokens taken in, computed or found in the KV cache",
    "cached_tokens": "prompt tokens found in the KV cache",
    "drafted_tokens": "guesses at next tokens that were checked",
    "accepted_tokens": "guesses at next tokens that were right",
    "evicted_blocks": "KV blocks that could have been found again and were needed for something else",
    "output_tokens": "tokens produced",
    "completed": "requests that ended with a completion",
    "failed": "requests that ended with an error",
    "preempted": "requests that gave their KV blocks back to run later",
}


class Counters:
    """Counts outcomes of jobs in this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.finished = Counter("headrace_jobs_finished", "outcomes stored", ["state"], registry=registry)
        self.released = Counter("headrace_jobs_released", "attempts handed back to the queue", registry=registry)
        self.stale_finishes = Counter(
            "headrace_stale_finishes", "outcomes refused because a newer attempt owns the job", registry=registry
        )
        self.outcomes_lost = Counter(
            "headrace_outcomes_lost", "outcomes not stored because Postgres stayed away", registry=registry
        )
        self.hints_dropped = Counter(
            "headrace_hints_dropped", "messages for jobs that were not to be had", registry=registry
        )
        self.junk = Counter("headrace_junk_dropped", "messages in Redis that could not be read", registry=registry)


class FrameCounts(Protocol):
    """The counts of ``workers.runs.stream_publisher.FrameQueue``."""

    num_published: int
    num_dropped: int


class EngineCollector(Collector):
    """Reads the engine and the frame queue at each scrape."""

    def __init__(self, stats: Callable[[], EngineStats], frames: FrameCounts) -> None:
        self._stats = stats
        self._frames = frames

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each field of EngineStats, and the frames."""
        stats = self._stats()
        for name, about in GAUGES.items():
            yield GaugeMetricFamily(f"headrace_engine_{name}", about, value=float(getattr(stats, name)))
        for name, about in COUNTERS.items():
            yield CounterMetricFamily(f"headrace_engine_{name}", about, value=float(getattr(stats, name)))
        yield CounterMetricFamily("headrace_frames_published", "stream frames sent", value=self._frames.num_published)
        yield CounterMetricFamily("headrace_frames_dropped", "stream frames not sent", value=self._frames.num_dropped)

"""The metrics of one worker, which serves one model version: times and outcomes of its jobs, and its engine."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headrace.store.jobs.terminal import DEAD_LETTER_CODES
from headrace.store.metrics.registry import SECONDS, SHORT_SECONDS, CommitMetrics, begin, new_registry, render
from headrace.store.payloads.job_payload import CLASS_NAMES
from headrace.store.schema.job_states import JobState
from headrace.store.tracing.tracing import OFF, Tracing

ENGINE_GAUGES = {
    "running": "requests in the engine's batch",
    "waiting": "requests inside the engine that wait for room",
    "free_blocks": "KV blocks that no request holds",
    "total_blocks": "KV blocks of the pool",
    "max_slots": "requests that may run together: HEADRACE_MAX_SLOTS, and a quarter more for jobs that go ahead",
    "mean_batch": "decode rows of a step that decoded, mean since the start",
    "peak_batch": "most decode rows of one step",
    "last_step_age_s": "seconds since the last step ended, 0 when idle",
}
ENGINE_COUNTERS = {
    "steps": "engine steps",
    "batch_rows": "rows of all steps; divided by the steps it is the occupancy of the batch",
    "padding_tokens": "computed positions that held no token of an input",
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


class Served(NamedTuple):
    """What a worker serves: the first labels of its metrics."""

    model: str
    version: str
    task: str


_LABELS = Served._fields
_STATES = [state.value for state in JobState if state.is_terminal]
# The usual codes of attempts that went back; others appear with their first attempt.
_RELEASES = ("handed_back", "internal_error", "out_of_memory", "worker_lost")


@dataclass(frozen=True, slots=True)
class JobTimes:
    """The times of one class's jobs."""

    queue: Histogram
    first_token: Histogram
    inter_token: Histogram
    prefill: Histogram
    decode: Histogram
    total: Histogram


class WorkerMetrics:
    """Counts what happens to the jobs of this process. ``times`` is by class rank."""

    def __init__(self, served: Served, tracing: Tracing = OFF) -> None:
        self._registry = registry = new_registry(tracing)
        self._served = served
        self.commits = CommitMetrics(registry)
        self._finished = self._counter("headrace_jobs_finished", "outcomes stored", "class", "state")
        for name in CLASS_NAMES.values():
            begin(self._finished, *_STATES, before=(*served, name))
        self._errors = self._counter("headrace_job_errors", "outcomes stored of jobs that failed, by code", "code")
        self._released = self._counter(
            "headrace_jobs_released", "attempts handed back to the queue, by the code of the reason", "code"
        )
        begin(self._released, *_RELEASES, before=served)
        begin(self._errors, *DEAD_LETTER_CODES, before=served)
        self._policy_actions = self._counter(
            "headrace_output_policy_actions", "what policies of tenants did to outputs: findings by action", "action"
        )
        self.stale_finishes = self._plain(
            "headrace_stale_finishes", "outcomes refused because a newer attempt owns the job"
        )
        self.outcomes_lost = self._plain("headrace_outcomes_lost", "outcomes not stored because Postgres stayed away")
        self.hints_dropped = self._plain("headrace_hints_dropped", "messages for jobs that were not to be had")
        self.junk = self._plain("headrace_junk_dropped", "messages in Redis that could not be read")
        self.times: Mapping[int, JobTimes] = self._new_times()

    def add_engine(
        self, stats: Callable[[], object], frames: "FrameCounts", num_leases_lost: Callable[[], int]
    ) -> None:
        """Export the engine's statistics (``stats`` returns ``EngineStats``), the frame queue and the lost leases."""
        self._registry.register(_EngineCollector(self._served, stats, frames, num_leases_lost))

    def add_calls(self, num_open: Callable[[], int]) -> Callable[[str, str, float], None]:
        """Export the calls of tools; return what counts one: its kind, its result, and how long it took in seconds.

        ``num_open``: the number of tools that are not called for a while, of all tenants.
        """
        labels = [*_LABELS, "kind", "result"]
        about = "time of a call of a tool with all its tries"
        calls = Histogram("headrace_tool_call_seconds", about, labels, buckets=SHORT_SECONDS, registry=self._registry)
        gauge = Gauge("headrace_tool_circuits_open", "tools that are not called for a while", registry=self._registry)
        gauge.set_function(num_open)
        return lambda kind, result, seconds: calls.labels(*self._served, kind, result).observe(seconds)

    def render(self) -> bytes:
        """Return the page for Prometheus."""
        return render(self._registry)

    def count_finished(self, class_rank: int, state: str, code: str | None) -> None:
        """Count an outcome that was stored; ``code`` is that of the job's error, if it has one."""
        self._finished.labels(*self._served, CLASS_NAMES[class_rank], state).inc()
        if code is not None:
            self._errors.labels(*self._served, code).inc()

    def count_released(self, code: str, num_attempts: int = 1) -> None:
        """Count attempts that went back to the queue."""
        self._released.labels(*self._served, code).inc(num_attempts)

    def count_policy_action(self, action: str, num_findings: int) -> None:
        """Count what a policy did to an output that was stored."""
        self._policy_actions.labels(*self._served, action).inc(num_findings)

    def _new_times(self) -> dict[int, JobTimes]:
        queue = self._histogram("headrace_queue_seconds", "from acceptance to the job's first step, first attempts")
        first_token = self._histogram("headrace_time_to_first_token_seconds", "from acceptance to the first token")
        inter_token = self._histogram(
            "headrace_inter_token_seconds", "between two pieces of a stream, divided by the tokens of the later one"
        )
        prefill = self._histogram(
            "headrace_prefill_seconds", "from an attempt's first step to its first token; of an encoder, all of it"
        )
        decode = self._histogram("headrace_decode_seconds", "from an attempt's first token to its last")
        total = self._histogram("headrace_job_seconds", "from acceptance to the stored outcome, succeeded jobs")
        every = (queue, first_token, inter_token, prefill, decode, total)
        return {
            rank: JobTimes(*(one.labels(*self._served, name) for one in every)) for rank, name in CLASS_NAMES.items()
        }

    def _histogram(self, name: str, about: str) -> Histogram:
        buckets = SHORT_SECONDS if name == "headrace_inter_token_seconds" else SECONDS
        return Histogram(name, about, [*_LABELS, "class"], buckets=buckets, registry=self._registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, [*_LABELS, *labels], registry=self._registry)

    def _plain(self, name: str, about: str) -> Counter:
        return Counter(name, about, registry=self._registry)


class FrameCounts(Protocol):
    """The counts of ``workers.runs.stream_publisher.FrameQueue``."""

    num_published: int
    num_dropped: int


class _EngineCollector(Collector):
    """Reads the engine's statistics, the frame queue and the lost leases at each scrape."""

    def __init__(
        self, served: Served, stats: Callable[[], object], frames: FrameCounts, num_leases_lost: Callable[[], int]
    ) -> None:
        self._served = served
        self._stats = stats
        self._frames = frames
        self._num_leases_lost = num_leases_lost

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each field of EngineStats, the frames, and the leases."""
        stats = self._stats()
        for name, about in ENGINE_GAUGES.items():
            gauge = GaugeMetricFamily(f"headrace_engine_{name}", about, labels=_LABELS)
            gauge.add_metric(self._served, float(getattr(stats, name)))
            yield gauge
        for name, about in ENGINE_COUNTERS.items():
            counter = CounterMetricFamily(f"headrace_engine_{name}", about, labels=_LABELS)
            counter.add_metric(self._served, float(getattr(stats, name)))
            yield counter
        yield CounterMetricFamily("headrace_frames_published", "stream frames sent", value=self._frames.num_published)
        yield CounterMetricFamily("headrace_frames_dropped", "stream frames not sent", value=self._frames.num_dropped)
        yield CounterMetricFamily(
            "headrace_leases_lost", "leases that this worker lost while it ran the job", value=self._num_leases_lost()
        )

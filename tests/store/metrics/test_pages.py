"""The pages for Prometheus: each series after its events, with its labels and its value."""

import re
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from headrace.features.hosts.host_metrics import HostMetrics
from headrace.store.hosts.host_reports import HostPlace, HostReport, PlaceState
from headrace.store.metrics.api_metrics import ApiMetrics
from headrace.store.metrics.dispatcher_metrics import DispatcherMetrics, largest
from headrace.store.metrics.worker_metrics import ENGINE_COUNTERS, ENGINE_GAUGES, Served, WorkerMetrics
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.scheduling.backlog import Load, TenantBacklog
from headrace.store.scheduling.queue_ages import QueueAge
from headrace.store.tracing.tracing import SpanCounts, Tracing
from tests.metric_names import documented

AT = datetime(2026, 11, 29, tzinfo=UTC)
SHARES = [
    TenantBacklog("tiny@1", "ten_a", 1, Load(5, 50), Load(2, 20)),
    TenantBacklog("tiny@1", "ten_b", 1, Load(1, 90), Load(1, 90)),
    TenantBacklog("tiny@2", "ten_a", 2, Load(3, 30), Load(0, 0)),
]


def series(page: bytes, *, zeros: bool = False) -> dict[str, float]:
    """The series of ours without those of buckets and of the process; those at 0 only on request."""
    of_process = ("headrace_build_info", "headrace_periodic_failures")
    found = {}
    for line in page.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("headrace_") and "_bucket{" not in name and not name.startswith(of_process):
            found[name] = float(value)
    return {name: value for name, value in found.items() if value or zeros}


def began(page: bytes, name: str) -> list[str]:
    """The label sets of a metric that is at 0."""
    return list(re.findall(rf"^{name}{{([^}}]*)}} 0\.0$", page.decode(), re.MULTILINE))


def test_the_page_of_an_api_process() -> None:
    metrics = ApiMetrics()
    page = metrics.render(None)
    assert "headrace_postgres_up" not in series(page), "Postgres is away"
    assert began(page, "headrace_cache_results_total") == [
        f'result="{one}"' for one in ("hit", "shared", "miss", "bypass")
    ]
    assert began(page, "headrace_hub_errors_total") == [
        f'what="{one}"' for one in ("connection", "log_entry", "message")
    ]
    assert metrics.cache_hit_rate() is None
    metrics.count_accepted("tiny", 1, "generate", ServiceClass.BATCH, replayed=True)
    metrics.refused.labels("queue_full").inc()
    for result, num in (("hit", 2), ("shared", 1), ("miss", 1), ("bypass", 7)):
        metrics.cache_results.labels(result).inc(num)
    metrics.commits.observer("accept")(7, 0.5)
    assert metrics.cache_hit_rate() == 0.75
    metrics.render(SHARES)
    assert (
        series(metrics.render(SHARES)).items()
        >= {
            "headrace_postgres_up": 1,
            'headrace_jobs_accepted_total{class="batch",model="tiny",replayed="true",task="generate",version="1"}': 1,
            'headrace_requests_refused_total{code="queue_full"}': 1,
            'headrace_cache_results_total{result="hit"}': 2,
            'headrace_cache_results_total{result="shared"}': 1,
            'headrace_cache_results_total{result="miss"}': 1,
            'headrace_cache_results_total{result="bypass"}': 7,
            'headrace_commit_jobs_count{commit="accept"}': 1,
            'headrace_commit_jobs_sum{commit="accept"}': 7,
            'headrace_commit_seconds_count{commit="accept"}': 1,
            'headrace_commit_seconds_sum{commit="accept"}': 0.5,
            'headrace_queue_depth{class="standard",place="waiting",queue="tiny@1"}': 3,
            'headrace_queue_depth{class="standard",place="announced",queue="tiny@1"}': 3,
            'headrace_queue_depth{class="batch",place="waiting",queue="tiny@2"}': 3,
        }.items()
    )
    assert not any("queue_depth" in name for name in series(metrics.render([]), zeros=True)), "its queues are empty"


def test_the_page_of_a_dispatcher() -> None:
    metrics = DispatcherMetrics()
    page = metrics.render()
    for name, label, values in (("headrace_leases_expired", "outcome", ("requeued", "failed", "cancelled")),):
        assert began(page, f"{name}_total") == [f'{label}="{value}"' for value in values]
    metrics.queues.show_wanted({"tiny@1": 4})
    ages = [
        QueueAge("tiny@1", 1, oldest_age_s=9.0, earliest_deadline=AT),
        QueueAge("tiny@2", 2, oldest_age_s=None, earliest_deadline=None),
    ]
    for _ in range(2):  # the second replaces the first
        metrics.queues.set(SHARES, ages, {"tiny@1": 2, "idle@1": 1}, ["tiny@2"], num_tenants=1)
    metrics.flows_stuck.set(2)
    measured = {
        'headrace_queue_backlog_tokens{class="standard",queue="tiny@1"}': 140,
        'headrace_queue_backlog_tokens{class="batch",queue="tiny@2"}': 30,
        'headrace_queue_oldest_age_seconds{class="standard",queue="tiny@1"}': 9,
        'headrace_queue_earliest_deadline_timestamp_seconds{class="standard",queue="tiny@1"}': AT.timestamp(),
        'headrace_queue_workers{queue="tiny@1"}': 2,
        'headrace_queue_workers{queue="idle@1"}': 1,
        'headrace_queue_wanted_workers{queue="tiny@1"}': 4,
        'headrace_queue_paused{queue="tiny@2"}': 1,
        'headrace_tenant_backlog_tokens{tenant="ten_b"}': 90,
        "headrace_flows_stuck": 2,
    }
    assert series(metrics.render()).items() >= measured.items()
    assert series(metrics.render(), zeros=True)['headrace_queue_workers{queue="tiny@2"}'] == 0, "none serves it"
    metrics.leading.set(1)
    metrics.clear()
    assert series(metrics.render()) == {"headrace_dispatcher_leading": 1}
    assert not any(name.startswith("headrace_queue") for name in series(metrics.render(), zeros=True))
    assert largest(SHARES, 9) == [("ten_b", 90), ("ten_a", 80)]
    assert largest(SHARES, 0) == []


def test_the_page_of_a_worker() -> None:
    metrics = WorkerMetrics(Served("tiny", "1", "generate"))
    of = 'model="tiny",task="generate",version="1"'
    page = metrics.render()
    assert began(page, "headrace_jobs_finished_total") == [
        f'class="{name}",model="tiny",state="{state}",task="generate",version="1"'
        for name in ("interactive", "standard", "batch")
        for state in ("succeeded", "failed", "cancelled", "expired")
    ]
    assert began(page, "headrace_jobs_released_total") == [
        f'code="{code}",{of}' for code in ("handed_back", "internal_error", "out_of_memory", "worker_lost")
    ]
    stats = SimpleNamespace(**{name: number for number, name in enumerate([*ENGINE_GAUGES, *ENGINE_COUNTERS], 1)})
    metrics.add_engine(lambda: stats, SimpleNamespace(num_published=21, num_dropped=22), lambda: 23)
    count = metrics.add_calls(lambda: 24)
    count("http", "ok", 0.5)
    metrics.count_finished(2, "failed", "poison")
    metrics.count_finished(0, "succeeded", None)
    metrics.count_released("worker_lost", 3)
    metrics.count_policy_action("redact", 4)
    for rank, name in enumerate(("queue", "first_token", "inter_token", "prefill", "decode", "total")):
        getattr(metrics.times[rank % 3], name).observe(rank + 1)
    finished = 'headrace_jobs_finished_total{{class="{}",model="tiny",state="{}",task="generate",version="1"}}'
    call = 'headrace_tool_call_seconds{}{{kind="http",model="tiny",result="ok",task="generate",version="1"}}'
    engine = {
        f"headrace_engine_{name}{'_total' if name in ENGINE_COUNTERS else ''}{{{of}}}": number
        for name, number in vars(stats).items()
    }
    times = {}
    for rank, name in enumerate(
        ("queue", "time_to_first_token", "inter_token", "prefill", "decode", "job"),
    ):
        service_class = ("interactive", "standard", "batch")[rank % 3]
        labels = f'{{class="{service_class}",{of}}}'
        times |= {f"headrace_{name}_seconds_count{labels}": 1, f"headrace_{name}_seconds_sum{labels}": rank + 1}
    assert (
        series(metrics.render()).items()
        >= {
            **engine,
            **times,
            "headrace_frames_published_total": 21,
            "headrace_frames_dropped_total": 22,
            "headrace_leases_lost_total": 23,
            "headrace_tool_circuits_open": 24,
            call.format("_count"): 1,
            call.format("_sum"): 0.5,
            finished.format("batch", "failed"): 1,
            finished.format("interactive", "succeeded"): 1,
            f'headrace_job_errors_total{{code="poison",{of}}}': 1,
            f'headrace_jobs_released_total{{code="worker_lost",{of}}}': 3,
            'headrace_output_policy_actions_total{action="redact",model="tiny",task="generate",version="1"}': 4,
        }.items()
    )


def test_the_page_of_a_model_host() -> None:
    metrics = HostMetrics()
    place: dict[str, Any] = {"queue": "tiny@1", "since": AT}
    report = HostReport(
        name="a",
        started_at=AT,
        budget_bytes=100,
        places=(
            HostPlace(state=PlaceState.SERVING, memory_bytes=10, used_bytes=4, **place),
            HostPlace(state=PlaceState.DRAINING, memory_bytes=20, used_bytes=5, **place),
            HostPlace(state=PlaceState.SERVING, memory_bytes=30, **place),
        ),
    )
    assert began(metrics.render(), "headrace_host_starts_total") == ['outcome="served"', 'outcome="failed"']
    metrics.show(report)
    found = {
        "headrace_host_memory_budget_bytes": 100,
        "headrace_host_memory_needed_bytes": 60,
        "headrace_host_memory_used_bytes": 9,
        'headrace_host_places{state="serving"}': 2,
        'headrace_host_places{state="draining"}': 1,
    }
    assert series(metrics.render()).items() >= found.items()
    metrics.show(report.model_copy(update={"places": ()}))
    assert series(metrics.render()).keys() & found.keys() == {"headrace_host_memory_budget_bytes"}


def test_spans_are_counted_by_what_became_of_them() -> None:
    class Counted(Tracing):
        def counts(self) -> SpanCounts:
            return SpanCounts(exported=1, queue_full=2, not_exported=3)

    assert (
        series(ApiMetrics(Counted()).render(None)).items()
        >= {
            "headrace_spans_exported_total": 1,
            'headrace_spans_dropped_total{reason="queue_full"}': 2,
            'headrace_spans_dropped_total{reason="not_exported"}': 3,
        }.items()
    )


def pages() -> dict[str, str]:
    """The page of each kind of process, by its heading in docs/metrics.md."""
    worker = WorkerMetrics(Served("tiny", "1", "generate"))
    stats = SimpleNamespace(**dict.fromkeys([*ENGINE_GAUGES, *ENGINE_COUNTERS], 1))
    worker.add_engine(lambda: stats, SimpleNamespace(num_published=1, num_dropped=1), lambda: 1)
    found: dict[str, Any] = {
        "API": ApiMetrics(),
        "Worker": worker,
        "Dispatcher": DispatcherMetrics(),
        "Model host": HostMetrics(),
    }
    return {name: (one.render(None) if name == "API" else one.render()).decode() for name, one in found.items()}


def test_the_pages_have_every_metric_that_the_document_lists() -> None:
    for process, page in pages().items():
        kinds = dict(re.findall(r"^# TYPE (headrace_\w+) (\w+)$", page, re.MULTILINE))
        assert set(kinds) == {name for name in documented(process) if name.startswith("headrace_")}, process
        assert {name for name, kind in kinds.items() if kind == "counter"} == {n for n in kinds if n.endswith("_total")}


def test_a_short_job_and_one_of_an_hour_are_told_apart() -> None:
    bounds = re.findall(r'^headrace_job_seconds_bucket{.*le="([0-9.]+)"', pages()["Worker"], re.MULTILINE)
    assert (min(map(float, bounds)) < 0.1, max(map(float, bounds)) >= 3600) == (True, True)

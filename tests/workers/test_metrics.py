"""The pages for Prometheus of real processes: the names in docs/metrics.md, and what is counted."""

import re
from collections.abc import Callable

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.assembly import FEATURES
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from tests.metric_names import documented
from tests.processes import StartProcess, free_port, python, wait_for
from tests.workers.conftest import Bench, StartWorker, worker_environment

Page = Callable[[], str]


def _page(port: int) -> str:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False).text
    except httpx2.TransportError:
        return ""


def _names(text: str) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


def _sum(text: str, name: str, **labels: str) -> float:
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name]
    return sum(one.value for one in samples if labels.items() <= one.labels.items())


@pytest.fixture
def dispatcher(settings: Settings, start_process: StartProcess) -> int:
    """The port of a dispatcher process."""
    port = free_port()
    changes = {"dispatcher_port": port, "metrics_tenants": 1, "sweep_s": 0.5}
    start_process(python("-m", "headrace.workers.dispatcher"), worker_environment(settings, changes))
    return port


def test_every_documented_metric_is_exported_and_no_other(
    settings: Settings, dispatcher: int, start_process: StartProcess, start_worker: StartWorker
) -> None:
    worker, api = free_port(), free_port()
    start_process(
        python("-m", "headrace.producer_api"), worker_environment(settings, {"api_port": api, "row_security": "off"})
    )
    start_worker(worker_metrics_port=worker)
    for process, port in (("Worker", worker), ("Dispatcher", dispatcher), ("API", api)):
        wait_for(lambda port=port: _page(port), f"the {process} answers")  # type: ignore[misc]
        features = {"Webhooks": "webhooks", "Rollouts": "rollouts"} if process == "Dispatcher" else {}
        of_features = {name for part, feature in features.items() if feature in FEATURES for name in documented(part)}
        assert _names(_page(port)) == documented(process) | of_features, process


@pytest.mark.full
def test_a_worker_counts_the_times_and_outcomes_of_its_jobs(
    bench: Bench, start_worker: StartWorker, dispatcher: int
) -> None:
    port = free_port()
    waiting = bench.submit(2)
    wait_for(lambda: _sum(_page(dispatcher), "headrace_queue_oldest_age_seconds", queue="fake@1") > 0, "it is measured")
    page = _page(dispatcher)
    assert _sum(page, "headrace_queue_backlog_tokens", queue="fake@1") > 0
    assert _sum(page, "headrace_queue_workers") == 0
    assert _sum(page, "headrace_tenant_backlog_tokens", tenant=bench.tenant_id) > 0
    assert _sum(page, "headrace_dispatcher_leading") == 1
    start_worker(worker_metrics_port=port)
    bench.wait_ended(waiting)
    bench.wait_ended(bench.submit(1, sampling={"max_tokens": 9000}))

    def counted() -> str:
        """Return the page once it has the last commit, which is counted after its jobs were told.

        A job with a locked row is in more than one.
        """
        page = _page(port)
        sums = _sum(page, "headrace_commit_jobs_sum", commit="finish"), _sum(page, "headrace_jobs_finished_total")
        return page if min(sums) >= 3 else ""

    page = wait_for(counted, "three outcomes are counted")
    of = {"model": "fake", "version": "1", "task": "generate", "class": "standard"}
    assert _sum(page, "headrace_jobs_finished_total", **of, state=JobState.SUCCEEDED.value) == 2
    assert _sum(page, "headrace_job_errors_total", code="context_length_exceeded") == 1
    for name in ("queue", "time_to_first_token", "prefill", "decode", "job"):
        assert _sum(page, f"headrace_{name}_seconds_count", **of) == 2, name
    # The parts of a job's time do not exceed the whole, and the first token comes after the wait.
    whole, first, wait, prefill, decode = (
        _sum(page, f"headrace_{name}_seconds_sum", **of)
        for name in ("job", "time_to_first_token", "queue", "prefill", "decode")
    )
    assert whole >= first + decode > first >= wait > 0
    assert first == pytest.approx(wait + prefill)
    assert _sum(page, "headrace_inter_token_seconds_count", **of) > 0
    assert _sum(page, "headrace_engine_batch_rows_total") >= _sum(page, "headrace_engine_steps_total") > 0

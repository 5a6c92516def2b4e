"""What flows add to the dispatcher: its duties end approvals and count flows that are stuck."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.features.flows import dispatcher
from headrace.features.flows.store import approvals
from headrace.store.metrics.dispatcher_metrics import DispatcherMetrics
from headrace.store.settings import Settings
from headrace.workers.dispatcher.dispatcher_part import DispatcherContext

MOST = 500


def work(metrics: DispatcherMetrics, port: int = 9100) -> dict[str, Any]:
    settings = Settings(database_url="postgresql://x/x", redis_url="redis://x", dispatcher_port=port)
    nothing: Any = None
    built = dispatcher.PART.build(DispatcherContext(nothing, settings, metrics, nothing, nothing, nothing))
    return {duty.name: duty for (duty,) in built.duties}


@pytest.mark.parametrize("num", [MOST, MOST - 1, 0])
def test_approvals_end_in_batches_until_one_is_not_full(monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    monkeypatch.setattr(approvals, "expire_due", lambda _db, limit: num if limit == MOST else -1)
    with capture_logs() as logs:
        assert work(DispatcherMetrics())["expire_approvals"].run() is (num == MOST)
    assert [line["num_approvals"] for line in logs] == ([num] if num else [])


def test_flows_that_are_stuck_are_shown_until_another_dispatcher_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "count_stuck_flows", lambda _db: 2)
    metrics = DispatcherMetrics()
    counts = work(metrics)["count_stuck_flows"]
    counts.run()
    assert metrics.registry.get_sample_value("headrace_flows_stuck") == 2
    metrics.clear()
    assert metrics.registry.get_sample_value("headrace_flows_stuck") == 0
    assert [counts.is_needed(), work(metrics, port=0)["count_stuck_flows"].is_needed()] == [True, False]

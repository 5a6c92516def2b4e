"""The duty that decides the numbers of workers, on real Postgres; and the rate of one of several workers."""

import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.store.db.database import Database
from headrace.store.db.presence import beat_worker
from headrace.store.jobs.claims import claim
from headrace.store.metrics.dispatcher_metrics import DispatcherMetrics
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion
from headrace.store.scheduling import queues
from headrace.store.scheduling.autoscale import QueueState, WaitingClass, decide
from headrace.store.scheduling.backlog import Backlog, Load, TenantBacklog
from headrace.store.scheduling.queue_ages import QueueAge
from headrace.store.scheduling.scale_decisions import read_decisions, read_histories, read_slots
from headrace.store.scheduling.service_rate import Interval
from headrace.store.settings import Settings
from headrace.workers.dispatcher import autoscaler
from headrace.workers.dispatcher.autoscaler import Autoscaler, WorkerMeter, waiting
from tests.workers.conftest import Bench

Make = Callable[..., Autoscaler]


@pytest.fixture
def make(db: Database, settings: Settings) -> Make:
    def make(*bounds: str, metrics: DispatcherMetrics | None = None) -> Autoscaler:
        changes = {"autoscale": bounds, "autoscale_cool_down_s": 0.0, "autoscale_zero_after_s": 0.0}
        return Autoscaler(db, settings.model_copy(update=changes), metrics or DispatcherMetrics())

    return make


def register(db: Database, settings: Settings, name: str, base: ModelVersion | None = None) -> Bench:
    given: dict[str, Any] = {"runner": "fake", "source": "", "digest": "0" * 64, "dtype": "none", "base": base}
    given["context_window"] = 8192
    return Bench(db, settings, models.register_version(db, model=name, actor="tests", **given))


def test_it_decides_for_its_queues_from_what_waits_and_runs(db: Database, settings: Settings, make: Make) -> None:
    one, two = register(db, settings, "one"), register(db, settings, "two")
    two.submit(1)
    metrics = DispatcherMetrics()
    scaler = make("one=0..4", "none=1..2", metrics=metrics)
    with capture_logs() as logs:
        scaler.turn()
        scaler.turn()
    assert [(line["event"], line["model"]) for line in logs] == [("not_autoscaled", "none")]
    assert {queue: found.replicas for queue, found in read_decisions(db).items()} == {"one@1": 0}
    one.submit(1, service_class=ServiceClass.BATCH)
    with capture_logs() as logs:
        scaler.turn()
    (found,) = read_decisions(db).values()
    assert (found.replicas, "10 tokens" in found.reason) == (1, True)
    assert {key: logs[0][key] for key in ("event", "queue", "workers", "before")} == {
        "event": "scaled",
        "queue": "one@1",
        "workers": 1,
        "before": 0,
    }
    assert b'headrace_queue_wanted_workers{queue="one@1"} 1.0' in metrics.render()
    queues.pause(db, one.tenant_id, "one@1", actor="tests")
    make("one=0..4").turn()
    assert read_decisions(db)["one@1"].replicas == 0, "the jobs of a paused queue are not to be started"
    assert read_histories(db, ["two@1"]) == {}
    for bench in (one, two):
        bench.close()


def test_a_decision_knows_how_long_jobs_wait_and_what_a_worker_does(
    db: Database, settings: Settings, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[QueueState] = []
    monkeypatch.setattr(autoscaler, "decide", lambda state, *given: states.append(state) or decide(state, *given))
    bench, scaler = register(db, settings, "one"), make("one=0..4")
    beat_worker(db, "a", "one@1", None, slots=8)
    bench.submit(1)
    bench.query("UPDATE jobs SET created_at = now() - interval '50 s' RETURNING 1")
    scaler.turn()
    for second in range(1, 11):
        scaler.observe("one@1", Interval(states[0].at + 600 + second, 100, 4, 4, 40))
    beat_worker(db, "a", "one@1", None, slots=8)
    scaler.turn()
    (waiting_class,) = states[1].waiting
    assert waiting_class.oldest_age_s >= 50
    assert (states[1].workers, states[1].slots, states[1].worker_tokens_per_s) == (1, 8, pytest.approx(40))
    bench.close()


def test_workers_stay_while_they_run_jobs_of_adapters(db: Database, settings: Settings, make: Make) -> None:
    base = register(db, settings, "one")
    tone = register(db, settings, "tone", base=base.version)
    (job_id,) = tone.submit(1)
    assert claim(db, "worker", "tone@1", [job_id], 60.0)
    make("one=0..4").turn()
    found = read_decisions(db)["one@1"]
    assert (found.replicas, found.reason) == (1, "1 jobs run")
    for bench in (base, tone):
        bench.close()


def test_a_queue_that_is_not_decided_for_any_more_has_no_number(db: Database, settings: Settings, make: Make) -> None:
    bench = register(db, settings, "one")
    make("one=2..4").turn()
    assert read_decisions(db)["one@1"].replicas == 2
    bench.query("UPDATE queue_scaling SET decided_at = now() - interval '31 s' RETURNING 1")
    assert read_decisions(db) == {}
    beat_worker(db, "a", "one@1", None, slots=8)
    beat_worker(db, "b", "one@1", None, slots=4)
    assert read_slots(db) == {"one@1": 4}
    bench.close()


def test_the_rate_is_that_of_one_worker_and_the_load_that_of_all() -> None:
    meter = WorkerMeter()
    meter.has_workers(0.0, 2)
    for second in range(1, 31):
        busy = Interval(at=second, num_before=100, num_left=4, started_jobs=4, started_tokens=40)
        meter.observe(busy)
        if second == 2:
            assert meter.take_rate() is None, "a worker that fills its slots starts more than it can finish"
    assert meter.take_rate() == pytest.approx(20)
    assert meter.take_rate() is None, "no news"
    assert meter.load(30.0) == pytest.approx(20), "1,200 tokens in a minute"
    meter.has_workers(30.0, 4)
    for second in range(32, 152, 2):
        meter.observe(Interval(at=second, num_before=100, num_left=16, started_jobs=16, started_tokens=160))
    assert meter.take_rate() == pytest.approx(20), "twice as many workers start twice as much"
    assert meter.load(300.0) == 0


def test_a_queue_without_bounds_costs_no_more_memory_each_hour() -> None:
    """Nothing asks for its load."""
    meter = WorkerMeter()
    sizes = []
    tracemalloc.start()
    for hour in range(3):
        for second in range(3600):
            meter.observe(Interval(hour * 3600 + second, 10, 1, 1, 600))
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[2] - sizes[1] < 50_000


def test_a_paused_queue_of_an_adapter_neither_waits_nor_is_old() -> None:
    ages = {(name, 1): QueueAge(name, 1, age_s, None) for name, age_s in (("base@1", 2.0), ("lora@1", 900.0))}
    shares = tuple(TenantBacklog(name, "t", 1, Load(1, 10), Load()) for name in ("base@1", "lora@1"))
    for paused, found in (((), WaitingClass(1, 20, 900.0)), (("lora@1",), WaitingClass(1, 10, 2.0))):
        backlog = Backlog(shares, {}, frozenset(paused), datetime.now(UTC))
        assert waiting(("base@1", "lora@1"), backlog, ages) == (found,)

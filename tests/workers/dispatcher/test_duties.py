"""The decisions of the dispatcher's duties, on a store that answers as a test says: counts, bounds, pace, times."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.store.errors import Unavailable
from headrace.store.jobs import sweeps
from headrace.store.jobs.sweeps import LostAttempt, SweepResult
from headrace.store.metrics.dispatcher_metrics import DispatcherMetrics
from headrace.store.scheduling import queues
from headrace.store.scheduling.autoscale import WaitingClass
from headrace.store.scheduling.backlog import Backlog, Load, TenantBacklog
from headrace.store.scheduling.queue_ages import QueueAge
from headrace.store.scheduling.service_rate import Interval, Rate
from headrace.store.tenants import quotas
from headrace.store.tracing.tracing import SpanKind, TraceContext, TraceSpan, Tracing, attempt_span_id, ns_of
from headrace.workers.dispatcher import queue_gauges
from headrace.workers.dispatcher.autoscaler import WorkerMeter, waiting
from headrace.workers.dispatcher.job_sweeper import SWEEP_ROWS, JobSweeper, OutageGrace
from headrace.workers.dispatcher.lost_attempts import lost_attempt_spans
from headrace.workers.dispatcher.queue_gauges import QueueMeasurement
from headrace.workers.dispatcher.queue_stats import QueueStats

AT = datetime(2026, 11, 29, 12, tzinfo=UTC)
TRACE, ACCEPT = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174"
LOST = LostAttempt(
    job_id="job_1",
    tenant_id="ten_1",
    queue="tiny@1",
    model="tiny",
    epoch=3,
    attempt=2,
    worker="w1",
    created_at=AT,
    requeued_at=None,
    started_at=AT + timedelta(seconds=2),
    ended_at=AT + timedelta(seconds=5),
    traceparent=f"00-{TRACE}-{ACCEPT}-01",
)


class Answers:
    """Functions of the store: each call is noted, and answered with the next of its answers; the last one stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.calls: list[tuple[Any, ...]] = []

    def to(self, module: object, name: str, *answers: Any) -> None:
        left = list(answers)

        def answer(_db: object, *given: Any, **named: Any) -> Any:
            self.calls.append((name, *given, *named.values()))
            found = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(found, Exception):
                raise found
            return found

        self._monkeypatch.setattr(module, name, answer)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    return Answers(monkeypatch)


class Nudged:
    """Keeps the jobs whose streams are to end."""

    def __init__(self) -> None:
        self.job_ids: list[tuple[str, ...]] = []

    def nudge(self, job_ids: Any) -> None:
        self.job_ids.append(tuple(job_ids))


class Recording(Tracing):
    is_on = True

    def __init__(self) -> None:
        self.spans: list[TraceSpan] = []

    def record(self, span: TraceSpan) -> None:
        self.spans.append(span)


class Db:
    """A database that answers."""

    def ping(self) -> None:
        """Answer."""


class Sweeping:
    """A sweeper with its streams, metrics and spans."""

    def __init__(self) -> None:
        self.streams, self.metrics, self.tracing = Nudged(), DispatcherMetrics(), Recording()
        anything: Any = self.streams
        db: Any = Db()
        grace = OutageGrace(1e12, 1e12, 0.0)
        self.sweeper = JobSweeper(db, anything, grace, self.metrics, lease_s=7.0, tracing=self.tracing)

    def counted(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def test_a_sweep_counts_each_outcome_ends_streams_and_goes_on_after_a_full_batch(answers: Answers) -> None:
    one = Sweeping()
    ended = tuple(f"job_{number}" for number in range(3))
    answers.to(
        sweeps,
        "sweep_leases",
        SweepResult(SWEEP_ROWS - 3, 2, 1, ended, (LOST,)),
        SweepResult(SWEEP_ROWS - 1, 0, 0),
        SweepResult(0, 0, 0),
    )
    with capture_logs() as logs:
        assert [one.sweeper.sweep_leases() for _ in range(3)] == [True, False, False]
    assert answers.calls == [("sweep_leases", SWEEP_ROWS, True)] * 3
    assert logs == [
        {
            "event": "dispatcher.leases_swept",
            "log_level": "info",
            "blamed": True,
            "requeued": requeued,
            "failed": failed,
            "cancelled": cancelled,
        }
        for requeued, failed, cancelled in ((SWEEP_ROWS - 3, 2, 1), (SWEEP_ROWS - 1, 0, 0))
    ]
    assert one.streams.job_ids == [ended]
    found = [one.counted("headrace_leases_expired_total", outcome=name) for name in ("requeued", "failed", "cancelled")]
    assert found == [2 * SWEEP_ROWS - 4, 2, 1]
    assert [span.name for span in one.tracing.spans] == ["queue", "lost attempt tiny"]


def test_a_refused_sweep_blames_nobody_afterwards(answers: Answers) -> None:
    one = Sweeping()
    answers.to(sweeps, "sweep_leases", Unavailable("the disk is full"), SweepResult(0, 0, 0))
    with pytest.raises(Unavailable):
        one.sweeper.sweep_leases()
    one.sweeper.sweep_leases()
    assert answers.calls == [("sweep_leases", SWEEP_ROWS, True), ("sweep_leases", SWEEP_ROWS, False)]


@pytest.mark.parametrize("num", [SWEEP_ROWS, SWEEP_ROWS - 1, 0])
def test_each_other_sweep_goes_on_after_a_full_batch_alone(answers: Answers, num: int) -> None:
    one = Sweeping()
    ids = tuple(f"job_{number}" for number in range(num))
    answers.to(sweeps, "expire_overdue", ids)
    answers.to(sweeps, "fail_rejected", ids)
    turns = (
        one.sweeper.expire_deadlines,
        one.sweeper.fail_rejected,
    )
    with capture_logs() as logs:
        assert [turn() for turn in turns] == [num == SWEEP_ROWS] * 2
    assert answers.calls == [
        ("expire_overdue", SWEEP_ROWS, 14.0),
        ("fail_rejected", SWEEP_ROWS),
    ]
    assert one.streams.job_ids == [ids] * 2 if num else one.streams.job_ids == []
    assert one.counted("headrace_jobs_expired_total") == num
    said = [{name: value for name, value in line.items() if name != "log_level"} for line in logs]
    expected = [
        {"event": "dispatcher.expired", "num_jobs": num},
        {"event": "dispatcher.rejected_failed", "num_jobs": num},
    ]
    assert said == (expected if num else [])


def test_the_spans_of_a_lost_attempt_have_the_ids_of_its_own() -> None:
    accept = TraceContext(TRACE, ACCEPT, is_sampled=True)
    queue, lost = lost_attempt_spans(LOST, accept)
    about = {
        "headrace.job.id": "job_1",
        "headrace.tenant.id": "ten_1",
        "headrace.queue": "tiny@1",
        "headrace.attempt.number": 2,
        "headrace.attempt.epoch": 3,
        "headrace.worker": "w1",
    }
    assert [(span.name, span.start_ns, span.end_ns, span.parent_span_id, span.error) for span in (queue, lost)] == [
        ("queue", ns_of(AT), ns_of(LOST.started_at), ACCEPT, None),
        ("lost attempt tiny", ns_of(LOST.started_at), ns_of(LOST.ended_at), ACCEPT, "worker_lost"),
    ]
    assert dict(queue.attributes) == about
    assert dict(lost.attributes) == {
        **about,
        "headrace.attempt.outcome": "worker_lost",
        "gen_ai.provider.name": "headrace",
        "gen_ai.request.model": "tiny",
    }
    assert (lost.context.span_id, lost.links, lost.kind) == (attempt_span_id("job_1", 3), (), SpanKind.CONSUMER)
    requeued_at = AT + timedelta(seconds=1)
    queue, lost = lost_attempt_spans(replace_at(requeued_at), accept)
    assert queue.start_ns == ns_of(requeued_at)
    assert [link.span_id for link in lost.links] == [attempt_span_id("job_1", 2)]


def replace_at(requeued_at: datetime) -> LostAttempt:

    return replace(LOST, requeued_at=requeued_at)


def test_rates_are_written_at_most_once_a_second(answers: Answers) -> None:
    now = [100.0]
    told: list[tuple[str, Interval]] = []
    intervals = [Interval(at, 10, 2, 2, 20) for at in (1.0, 2.0, 3.0, 4.0)]
    answers.to(quotas, "fold", None)
    answers.to(queues, "fold", *({"tiny@1": one} for one in intervals), {})
    answers.to(queues, "record_rates", None)
    db: Any = None
    stats = QueueStats(db, on_interval=lambda queue, interval: told.append((queue, interval)), clock=lambda: now[0])

    def written() -> list[Any]:
        return [call[1] for call in answers.calls if call[0] == "record_rates"]

    stats.turn()
    assert (stats.has_news, written()) == (False, []), "a first interval has no length"
    stats.turn()
    assert (stats.has_news, written()) == (False, [{"tiny@1": Rate(2.0, 20.0)}])
    now[0] += 0.9
    stats.turn()
    assert (stats.has_news, len(written())) == (True, 1)
    now[0] += 0.2
    stats.turn()
    assert (stats.has_news, len(written())) == (False, 2)
    now[0] += 2.0
    stats.turn()
    assert len(written()) == 2, "nothing is new"
    assert told == [("tiny@1", one) for one in intervals]
    assert [call[0] for call in answers.calls].count("fold") == 10


def test_the_gauges_are_those_of_the_queues_and_their_workers(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = DispatcherMetrics()
    backlog = Backlog((TenantBacklog("tiny@1", "ten_1", 1, Load(3, 30), Load()),), {}, frozenset({"tiny@1"}), AT)
    shown: list[Any] = []
    monkeypatch.setattr(metrics.queues, "set", lambda *given, **named: shown.append((given, named)))
    serving: Any = type("Serving", (), {"workers": 2})()
    answers.to(queue_gauges, "read_backlog", backlog)
    answers.to(queue_gauges, "read_queue_ages", ())
    answers.to(queue_gauges, "read_serving", {"tiny@1": serving})
    db: Any = None
    QueueMeasurement(db, metrics, num_tenants=9).turn()
    assert shown == [((backlog.computed, (), {"tiny@1": 2}, frozenset({"tiny@1"})), {"num_tenants": 9})]


def test_what_waits_is_told_by_class_with_its_age_and_its_deadline() -> None:
    ages = {
        ("base@1", 0): QueueAge("base@1", 0, 3.0, AT + timedelta(seconds=30)),
        ("lora@1", 0): QueueAge("lora@1", 0, 9.0, AT + timedelta(seconds=20)),
        ("base@1", 2): QueueAge("base@1", 2, None, None),
        ("other@1", 0): QueueAge("other@1", 0, 99.0, AT),
    }
    shares = (
        TenantBacklog("base@1", "t", 2, Load(40, 10), Load()),
        TenantBacklog("base@1", "t", 0, Load(1, 10), Load()),
        TenantBacklog("lora@1", "u", 0, Load(1, 15), Load(5, 50)),
        TenantBacklog("base@1", "u", 1, Load(0, 0), Load(5, 50)),
        TenantBacklog("other@1", "u", 0, Load(7, 700), Load()),
    )
    found = waiting(("base@1", "lora@1"), Backlog(shares, {}, frozenset(), AT), ages)
    assert found == (WaitingClass(0, 25, 9.0, 20.0), WaitingClass(2, 40, 0.0, None))


def test_a_load_counts_the_last_minute_alone() -> None:
    meter = WorkerMeter()
    for at in (0.0, 60.0):
        meter.observe(Interval(at, 10, 1, 1, 600))
    assert (meter.load(60.0), meter.load(60.1)) == (20.0, 10.0)

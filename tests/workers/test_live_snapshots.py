"""The snapshots and ticks that a worker publishes of itself."""

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.models.engine.requests import Delta
from headrace.store.redis.live_workers import KEEP_S, WorkerSnapshot, WorkerTick
from headrace.workers import live_reporter
from headrace.workers.live_reporter import LiveReporter, TokenCounts
from headrace.workers.runs.in_flight import Attempt, AttemptId, InFlightAttempts
from tests.processes import wait_for
from tests.workers.engine_stub import IDLE, EngineStub
from tests.workers.runs.test_outcome import CLAIM


class Busy(EngineStub):
    """An engine with two requests, of which one waits."""

    def stats(self) -> Any:
        return replace(IDLE, running=1, waiting=1, free_blocks=3, total_blocks=8)


JOB_SHOWN = {"tenant_id": "ten_1", "class_rank": 1, "attempt": 2, "age_s": 6.0, "input_tokens": 3}
FIRST_SNAPSHOT = {
    "id": "w1",
    "queue": "fake@1",
    "engine": "vLLM",
    "slots": 4,
    "running": 1,
    "waiting": 1,
    "free_blocks": 3,
    "total_blocks": 8,
    "lease_s": 10.0,
    "lease_age_s": 6.0,
    "jobs": [
        {"id": "job_0", **JOB_SHOWN, "output_tokens": 2, "max_tokens": 30, "progress": None},
        {"id": "job_1", **JOB_SHOWN, "output_tokens": 0, "max_tokens": 0, "progress": 0.5},
    ],
    "quiet_s": 4.0,
    "kept_s": KEEP_S,
    "is_reserved": False,
}
TICK = WorkerTick(
    worker="w1",
    queue="fake@1",
    tokens={"ten_1": 2, "": 1},
    first_token_ms={"ten_1": [2500.0]},
    running=1.0,
    slots=4,
)


class StepwisePublisher:
    """Keeps the published frames, and holds each publication until the test lets it go."""

    def __init__(self) -> None:
        self.told: list[tuple[WorkerSnapshot, WorkerTick | None]] = []
        self.withdrawn: list[str] = []
        self.may_go = threading.Semaphore(0)

    def publish(self, snapshot: WorkerSnapshot, tick: WorkerTick | None) -> None:
        self.told.append((snapshot, tick))
        self.may_go.acquire(timeout=30)

    def withdraw(self, owner: str) -> None:
        self.withdrawn.append(owner)


def two_attempts(counts: TokenCounts, in_flight: InFlightAttempts) -> None:
    """Add two attempts since 98 s, of which one was renewed at 99 s, and count tokens of the other."""
    for number, payload in enumerate(({"sampling": {"max_tokens": 30}}, {})):
        in_flight.add(Attempt(replace(CLAIM, job_id=f"job_{number}", payload=payload), 98.0, None, 98.0))
    in_flight.renewed(frozenset({"job_1"}), 99.0)
    counts.count([Delta(AttemptId("job_0", 4), 1, "x", (1, 2)), Delta(AttemptId("gone", 1), 1, "x", ())])


def test_a_snapshot_has_each_job_and_a_tick_the_tokens_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_reporter, "PERIOD_S", 0.0)
    now, in_flight = [100.0], InFlightAttempts()
    counts = TokenCounts(in_flight, clock=lambda: now[0])
    two_attempts(counts, in_flight)
    publisher: Any = StepwisePublisher()
    reporter = LiveReporter(
        publisher,
        Busy(),
        in_flight,
        counts,
        owner="w1",
        queue="fake@1",
        slots=4,
        lease_s=10.0,
        engine_description=lambda: "vLLM",
        progress_of={AttemptId("job_1", 4): 0.5}.get,
        clock=lambda: now[0],
    )
    now[0] = 104.0
    reporter.start()
    wait_for(lambda: len(publisher.told) == 1, "the first snapshot")
    now[0] = 105.0
    publisher.may_go.release()
    wait_for(lambda: len(publisher.told) == 2, "the second snapshot, with a tick")
    stop = threading.Thread(target=reporter.stop)
    stop.start()
    publisher.may_go.release(1000)
    wait_for(lambda: publisher.withdrawn == ["w1"], "it withdraws its snapshot")
    stop.join(30)
    first, tick = publisher.told[0]
    assert (first.model_dump(), tick) == (FIRST_SNAPSHOT, None)
    assert publisher.told[1][1] == TICK


def test_a_worker_is_quiet_since_its_last_token_or_since_it_was_idle_and_a_tick_counts_from_the_last() -> None:
    now, in_flight, running = [100.0], InFlightAttempts(), [0]
    counts = TokenCounts(in_flight, clock=lambda: now[0])
    two_attempts(counts, in_flight)
    told: list[tuple[WorkerSnapshot, WorkerTick | None]] = []
    publisher: Any = SimpleNamespace(publish=lambda *given: told.append(given), withdraw=lambda _owner: None)
    engine: Any = SimpleNamespace(stats=lambda: replace(IDLE, running=running[0]))
    options: dict[str, Any] = {"owner": "w1", "queue": "fake@1", "slots": 4, "lease_s": 10.0}
    reporter = LiveReporter(
        publisher, engine, in_flight, counts, engine_description=lambda: None, clock=lambda: now[0], **options
    )
    for now[0], running[0] in ((103.0, 0), (104.0, 1), (105.0, 1), (110.0, 1)):
        reporter.report()
    assert [snapshot.quiet_s for snapshot, _ in told] == [None, 1.0, 2.0, 7.0]
    assert [tick and round(tick.running, 3) for _, tick in told] == [None, None, 0.667, 1.0]


def test_a_tick_has_a_bounded_number_of_first_tokens_of_a_tenant() -> None:
    in_flight = InFlightAttempts()
    counts = TokenCounts(in_flight, clock=lambda: 2.0)
    attempts = [Attempt(replace(CLAIM, job_id=f"job_{number}"), 0.0, None, 0.0) for number in range(201)]
    for attempt in attempts:
        in_flight.add(attempt)
    counts.count([Delta(attempt.id, 1, "x", (1,)) for attempt in attempts])
    tokens, first_token_ms = counts.take()
    assert (tokens, {tenant: len(times) for tenant, times in first_token_ms.items()}) == (
        {CLAIM.tenant_id: 201},
        {CLAIM.tenant_id: 200},
    )

"""A worker tells Redis what it holds: for the console, and for nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import redis

from headrace.models.engine.requests import Delta
from headrace.store.redis import live_workers
from headrace.store.redis.live_workers import WorkerSnapshot, WorkerTick
from headrace.workers.live_reporter import LiveReporter, TokenCounts
from headrace.workers.runs.in_flight import Attempt, ChoiceId, InFlightAttempts
from tests.processes import wait_for
from tests.workers.conftest import Bench, StartWorker
from tests.workers.runs.test_outcome import CLAIM


@pytest.mark.full
def test_a_worker_tells_what_it_holds_and_what_it_has_done(
    bench: Bench, start_worker: StartWorker, redis_client: redis.Redis
) -> None:
    worker = start_worker(fake_step_ms=10, max_slots=4)
    (job_id,) = bench.submit(1, sampling={"max_tokens": 3000})
    bench.publish_hints([job_id])

    def told() -> WorkerSnapshot | None:
        found = [snapshot for snapshot, _ in live_workers.read_workers(redis_client)]
        return next((s for s in found if s.jobs and s.jobs[0].output_tokens > 0), None)

    snapshot = wait_for(told)
    assert (snapshot.queue, snapshot.slots, snapshot.running) == (bench.queue, 4, 1)
    (held,) = snapshot.jobs
    job = bench.job(job_id)
    assert (held.id, held.tenant_id, held.attempt, held.max_tokens) == (job_id, job.tenant_id, 1, 3000)
    assert snapshot.id == job.owner, "the name by which a claim knows it"
    assert held.input_tokens == job.input_tokens
    assert snapshot.lease_age_s is not None
    assert (snapshot.quiet_s is not None, snapshot.kept_s) == (True, live_workers.KEEP_S)

    def ticks() -> list[WorkerTick]:
        return [tick for _, tick in live_workers.read_ticks(redis_client, "0-0")[0]]

    wait_for(lambda: any(tick.tokens for tick in ticks()), "a tick counts the tokens")
    tick = next(tick for tick in ticks() if tick.tokens)
    assert tick.tokens.keys() == tick.first_token_ms.keys() == {job.tenant_id}
    assert len(tick.first_token_ms[job.tenant_id]) == 1
    assert 0 < tick.running <= 1
    worker.signal(15)
    wait_for(lambda: not live_workers.read_workers(redis_client), "a worker that stops withdraws its snapshot")


def test_a_worker_tells_that_it_takes_no_other_jobs() -> None:
    told: list[WorkerSnapshot] = []
    publisher = SimpleNamespace(publish=lambda snapshot, _tick: told.append(snapshot), withdraw=lambda _owner: None)
    stats = SimpleNamespace(running=0, waiting=0, free_blocks=1, total_blocks=1)
    in_flight = InFlightAttempts()
    reporter = LiveReporter(
        publisher, SimpleNamespace(stats=lambda: stats), in_flight, TokenCounts(in_flight), owner="w", queue="q",
        slots=1, lease_s=1.0, engine_description=lambda: None, is_reserved=lambda: True,
    )  # fmt: skip
    reporter.start()
    try:
        wait_for(lambda: told, "it tells")
    finally:
        reporter.stop()
    assert told[0].is_reserved


def test_the_choices_of_a_job_count_together_and_its_first_token_once() -> None:
    in_flight, attempt = InFlightAttempts(), Attempt(CLAIM, 0.0, None, 0.0)
    in_flight.add(attempt)
    counts = TokenCounts(in_flight, clock=lambda: 2.0)
    counts.count([Delta(ChoiceId(*attempt.id, choice), 1, "x", (1, 2)) for choice in range(2)])
    assert counts.tokens_of(attempt.id) == 4
    counts.keep({attempt.id})
    counts.count([Delta(ChoiceId(*attempt.id, 0), 2, "x", (1,))])
    assert counts.take() == ({CLAIM.tenant_id: 5}, {CLAIM.tenant_id: [2500.0]})
    later = Attempt(replace(CLAIM, epoch=CLAIM.epoch + 1), 0.0, None, 0.0)
    in_flight.add(later)
    counts.count([Delta(later.id, 3, "x", (1,))])
    tokens, times = counts.take()
    assert (tokens, any(times.values())) == ({CLAIM.tenant_id: 1}, False), "it continues another attempt"

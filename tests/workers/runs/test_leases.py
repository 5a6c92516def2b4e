"""Leases: renewed while the worker lives; a job without a lease stops."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import text

from headrace.models.engine.requests import FinishReason, RequestId
from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.jobs import claims, jobs, sweeps
from headrace.store.jobs.claims import Claim
from headrace.store.schema.job_states import JobState
from headrace.workers.runs import outcome
from headrace.workers.runs.claim_client import ClaimClient
from headrace.workers.runs.in_flight import Attempt, AttemptId, InFlightAttempts
from headrace.workers.runs.leases import LeaseKeeper
from tests.processes import wait_for
from tests.store.making import new_flow
from tests.workers.conftest import Bench
from tests.workers.engine_stub import EngineStub

LEASE_S = 30.0
SHORT_S = 6.0


@dataclass
class StubEngine(EngineStub):
    """An engine with scripted output that records cancelled requests."""

    cancelled: list[RequestId] = field(default_factory=list)

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> bool:
        self.cancelled.append(request_id)
        return True


class Desk:
    """A lease keeper over the real table, driven by hand, with a clock that is turned by hand."""

    def __init__(self, bench: Bench, db: Database) -> None:
        self.bench = bench
        self.now = 1000.0
        self.engine = StubEngine()
        self.in_flight = InFlightAttempts()
        self.stopping = threading.Event()
        self.claim_client = ClaimClient(
            db, owner="w1", queue=bench.queue, lease_s=LEASE_S, stopping=self.stopping, clock=lambda: self.now
        )
        self.keeper = LeaseKeeper(
            self.claim_client, self.in_flight, self.engine, lease_s=LEASE_S, clock=lambda: self.now
        )

    def claim(self, count: int) -> list[Attempt]:
        claimed = [self.claim_client.claim(job_id) for job_id in self.bench.submit(count)]
        attempts = [attempt for attempt in claimed if attempt is not None]
        for attempt in attempts:
            assert self.in_flight.add(attempt)
        return attempts

    def expires(self, attempt: Attempt) -> float:
        sql = "SELECT extract(epoch FROM lease_expires_at) AS at FROM jobs WHERE id = :id"
        (row,) = self.bench.query(sql, id=attempt.job_id)
        return float(row.at)

    @contextmanager
    def locked(self, job_id: str) -> Iterator[None]:
        """Let another transaction hold the job's row for the block."""
        url = self.bench.settings.database_url
        holder = Database(url, pool_size=1, application_name="holder", idle_timeout_s=120)
        try:
            with holder.begin() as connection:
                connection.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": job_id})
                yield
        finally:
            holder.close()

    def lose(self, attempt: Attempt) -> None:
        """Let the lease run out and the sweeper take the job."""
        self.bench.query(
            "UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE id = :id RETURNING id", id=attempt.job_id
        )
        assert sweeps.sweep_leases(self.bench.db).requeued == 1


@pytest.fixture
def desk(bench: Bench, db: Database) -> Desk:
    return Desk(bench, db)


def test_all_leases_are_renewed_also_while_the_engine_makes_no_step(desk: Desk) -> None:
    attempts = desk.claim(3)
    before = [desk.expires(attempt) for attempt in attempts]
    desk.now += 5
    desk.keeper.renew_once()
    assert all(desk.expires(attempt) > then for attempt, then in zip(attempts, before, strict=True))
    assert {desk.in_flight.renewed_at(attempt) for attempt in attempts} == {1005.0}


def test_a_lease_counts_from_before_the_renewal_was_sent(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the answer is, the worker never believes that a lease lasts longer than it does."""
    (attempt,) = desk.claim(1)
    renew = desk.claim_client.renew

    def slow(held: Mapping[str, int]) -> claims.Renewal:
        renewal = renew(held)
        desk.now += 7
        return renewal

    monkeypatch.setattr(desk.claim_client, "renew", slow)
    desk.now += 5
    desk.keeper.renew_once()
    assert desk.in_flight.renewed_at(attempt) == 1005.0


def test_a_job_that_is_not_ours_any_more_stops_alone(desk: Desk) -> None:
    ours, theirs = desk.claim(2)
    desk.lose(theirs)
    desk.keeper.renew_once()
    assert desk.engine.cancelled == [theirs.id]
    assert (desk.in_flight.owns(ours), desk.in_flight.owns(theirs)) == (True, False)


def test_an_outcome_that_is_being_written_is_not_taken_away(desk: Desk) -> None:
    (attempt,) = desk.claim(1)
    assert desk.in_flight.settle(attempt)
    desk.lose(attempt)
    desk.keeper.renew_once()
    assert desk.in_flight.owns(attempt), "the database refuses its outcome, not this table"


def test_a_renewal_brings_the_cancel_request(desk: Desk) -> None:
    ours, unwanted = desk.claim(2)
    jobs.request_cancel(desk.bench.db, desk.bench.tenant_id, unwanted.job_id)
    desk.keeper.renew_once()
    assert desk.engine.cancelled == [unwanted.id]
    assert desk.in_flight.owns(unwanted), "it ends with an outcome, so it stays ours"
    assert desk.in_flight.owns(ours)


def test_a_cancel_for_a_job_of_another_worker_is_nothing(desk: Desk) -> None:
    desk.keeper.cancel("job_elsewhere")
    assert desk.engine.cancelled == []


def test_a_row_that_another_transaction_locks_costs_no_other_job_its_lease(desk: Desk) -> None:
    locked, *others = desk.claim(20)
    before = {attempt.job_id: desk.expires(attempt) for attempt in (locked, *others)}
    desk.now += 5
    with desk.locked(locked.job_id):
        desk.keeper.renew_once()
    assert all(desk.expires(attempt) > before[attempt.job_id] for attempt in others)
    assert {desk.in_flight.renewed_at(attempt) for attempt in others} == {1005.0}
    assert (desk.in_flight.owns(locked), desk.in_flight.renewed_at(locked)) == (True, 1000.0), "it was only not renewed"
    desk.now += LEASE_S - 1
    desk.keeper.drop_expired()
    assert desk.engine.cancelled == [locked.id], "its lease is over, and no other's"
    assert desk.keeper.num_lost == 1


def test_a_lease_is_kept_by_a_renewal_after_the_lock(desk: Desk) -> None:
    (attempt,) = desk.claim(1)
    with desk.locked(attempt.job_id):
        desk.keeper.renew_once()
    desk.now += LEASE_S / 3
    desk.keeper.renew_once()
    desk.now += LEASE_S - 1
    desk.keeper.drop_expired()
    assert desk.in_flight.owns(attempt)


def joined(call: Any, items: list[Any]) -> list[Future[Any]]:
    """Call with each of the items at the same time, so that they share a wave."""
    threads = ThreadPoolExecutor(len(items))
    futures = [threads.submit(call, item) for item in items]
    threads.shutdown(wait=False)
    return futures


def test_a_locked_row_holds_up_no_other_claim_and_is_claimed_after_it(desk: Desk) -> None:
    ids = desk.bench.submit(4)
    with desk.locked(ids[0]):
        first, *others = joined(desk.claim_client.claim, ids)
        assert [other.result(60).job_id for other in others] == ids[1:]
        assert not first.done()
    assert first.result(60).job_id == ids[0]


def test_a_row_that_stays_locked_is_left_to_the_dispatcher(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.workers.runs.claim_client.LOCKED_S", -1.0)
    (job_id,) = desk.bench.submit()
    with desk.locked(job_id):
        assert desk.claim_client.claim(job_id) is None
    assert desk.bench.states([job_id]) == {JobState.QUEUED: 1}


def test_a_locked_row_holds_up_no_other_outcome_and_has_its_own_after_it(desk: Desk) -> None:
    attempts = desk.claim(4)
    ids = [attempt.job_id for attempt in attempts]

    def finish(attempt: Attempt) -> bool:
        # Later than two leases, when an outcome that was not written is given up otherwise.
        return desk.claim_client.finish(outcome.failed(attempt.claim, "broken", "it broke"), until=lambda: desk.now - 1)

    with desk.locked(ids[0]):
        first, *others = joined(finish, attempts)
        assert [other.result(60) for other in others] == [True] * 3
        assert not first.done()
    assert first.result(60) is True
    assert desk.bench.states(ids) == {JobState.FAILED: 4}
    assert len(desk.bench.query("SELECT job_id FROM job_terminal")) == 4


def test_a_locked_flow_holds_up_no_other_outcome_and_is_settled_after_it(desk: Desk) -> None:
    flow = new_flow(desk.bench.new_job, {"only": ()})
    jobs.accept(desk.bench.db, [replace(flow, steps=(replace(flow.steps[0], queue=desk.bench.queue),))])
    step = desk.claim_client.claim(flow.steps[0].id)
    assert step is not None
    plain = desk.claim(3)

    def finish(attempt: Attempt) -> bool:
        failed = outcome.failed(attempt.claim, "broken", "it broke")
        ended = replace(failed, parent_id=attempt.claim.parent_id)
        return desk.claim_client.finish(ended, until=lambda: desk.now - 1)

    with desk.locked(flow.id):
        (first,) = joined(finish, [step])
        others = joined(finish, plain[:2])
        assert [other.result(60) for other in others] == [True] * 2
        assert desk.claim_client.release([step, plain[2]], charge=False) == {plain[2].job_id}
        assert not first.done()
    assert first.result(60) is True
    assert desk.bench.states([flow.id, step.job_id]) == {JobState.FAILED: 2}


@pytest.mark.parametrize("is_ours", [True, False])
def test_an_outcome_whose_answer_was_lost_is_known_when_it_is_tried_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, is_ours: bool
) -> None:
    (attempt,) = desk.claim(1)
    finish, lost = claims.finish, [True]

    def answerless(*args: Any) -> set[str]:
        if lost.pop() if lost else False:
            if is_ours:
                finish(*args)
            else:
                desk.lose(attempt)
            raise Unavailable("the answer was lost")
        return finish(*args)

    monkeypatch.setattr(claims, "finish", answerless)
    ended = outcome.failed(attempt.claim, "broken", "it broke")
    assert desk.claim_client.finish(ended, until=lambda: desk.now + 60) is is_ours
    assert desk.bench.job(attempt.job_id).state is (JobState.FAILED if is_ours else JobState.QUEUED)


def test_a_locked_row_holds_up_no_other_that_is_given_back(desk: Desk) -> None:
    attempts = desk.claim(3)
    with desk.locked(attempts[0].job_id):
        assert len(desk.claim_client.release(attempts, charge=False)) == 2
    assert desk.bench.states([attempt.job_id for attempt in attempts]) == {JobState.RUNNING: 1, JobState.QUEUED: 2}


def test_a_worker_that_stops_gives_back_what_was_locked_for_a_moment(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = desk.claim(2)
    desk.stopping.set()
    missed = threading.Semaphore(0)
    still_running = claims.still_running

    def noted(db: Database, held: Mapping[str, int]) -> set[str]:
        missed.release()
        return still_running(db, held)

    monkeypatch.setattr(claims, "still_running", noted)
    monkeypatch.setattr("headrace.workers.runs.claim_client.LAST_TRIES", 10_000)
    ours = outcome.Retry("worker_draining", "the worker stops", charge=False).release(one.claim)
    with desk.locked(one.job_id), desk.locked(other.job_id):
        (given,) = joined(lambda release: desk.claim_client.give_back(release, until=lambda: desk.now - 1), [ours])
        (rest,) = joined(lambda attempts: desk.claim_client.release(attempts, charge=False), [[other]])
        for _ in range(4):
            assert missed.acquire(timeout=30)
    assert (given.result(30), rest.result(30)) == (True, {other.job_id})
    assert desk.bench.states([one.job_id, other.job_id]) == {JobState.QUEUED: 2}


def test_without_postgres_jobs_stop_when_their_lease_must_be_over(desk: Desk) -> None:
    (attempt,) = desk.claim(1)
    away = Database("postgresql://app@/postgres?host=/nowhere", application_name="tests")
    desk.keeper = LeaseKeeper(
        ClaimClient(away, owner="w1", queue=desk.bench.queue, lease_s=LEASE_S, stopping=threading.Event()),
        desk.in_flight,
        desk.engine,
        lease_s=LEASE_S,
        clock=lambda: desk.now,
    )
    desk.now += LEASE_S - 1
    desk.keeper.renew_once()
    desk.keeper.drop_expired()
    assert desk.in_flight.owns(attempt)
    desk.now += 2
    desk.keeper.renew_once()
    desk.keeper.drop_expired()
    assert desk.engine.cancelled == [attempt.id]
    away.close()


@pytest.fixture
def running(bench: Bench, db: Database) -> Iterator[LeaseKeeper]:
    claim_client = ClaimClient(db, owner="w1", queue=bench.queue, lease_s=SHORT_S, stopping=threading.Event())
    in_flight = InFlightAttempts()
    engine = StubEngine()
    for job_id in bench.submit(2):
        attempt = claim_client.claim(job_id)
        assert attempt is not None
        in_flight.add(attempt)
    keeper = LeaseKeeper(claim_client, in_flight, engine, lease_s=SHORT_S)
    keeper.start()
    yield keeper
    keeper.stop()


def test_the_thread_keeps_leases_alive_until_it_is_stopped(bench: Bench, running: LeaseKeeper) -> None:
    ends = "SELECT max(lease_expires_at) AS at FROM jobs"
    (first,) = bench.query(ends)
    wait_for(lambda: (bench.query(ends)[0].at - first.at).total_seconds() > 0.5 * SHORT_S, "it has renewed twice")
    assert sweeps.sweep_leases(bench.db).requeued == 0
    running.stop()
    wait_for(lambda: sweeps.sweep_leases(bench.db).requeued, "the leases ran out")


def test_the_thread_stops_what_it_could_not_renew(bench: Bench, db: Database) -> None:
    """Postgres is away: the jobs are another worker's when the lease has run out, whatever this one believes."""
    claim_client = ClaimClient(db, owner="w1", queue=bench.queue, lease_s=0.6, stopping=threading.Event())
    in_flight, engine = InFlightAttempts(), StubEngine()
    attempt = claim_client.claim(*bench.submit(1))
    assert attempt is not None
    in_flight.add(attempt)
    away = Database("postgresql://app@/postgres?host=/nowhere", application_name="tests")
    renewing = ClaimClient(away, owner="w1", queue=bench.queue, lease_s=0.6, stopping=threading.Event())
    keeper = LeaseKeeper(renewing, in_flight, engine, lease_s=0.6)
    keeper.start()
    try:
        wait_for(lambda: engine.cancelled == [attempt.id], "the engine is told")
        assert not in_flight.owns(attempt)
    finally:
        keeper.stop()
        away.close()


def test_two_copies_of_a_hint_in_one_claim_are_one_attempt(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    first, twice = desk.bench.submit(2)
    claim, has_begun, goes_on = claims.claim, threading.Event(), threading.Event()

    def slow(*args: Any, **options: Any) -> dict[str, Claim]:
        has_begun.set()
        assert goes_on.wait(30)
        return claim(*args, **options)

    monkeypatch.setattr(claims, "claim", slow)
    with ThreadPoolExecutor(3) as pool:
        # The first claim is held up, so that both copies are in the wave after it.
        alone = pool.submit(desk.claim_client.claim, first)
        assert has_begun.wait(30)
        copies = [pool.submit(desk.claim_client.claim, twice) for _ in range(2)]
        wait_for(lambda: len(desk.claim_client.claims.waiting) == 2, "both wait for the next wave")
        goes_on.set()
        assert alone.result() is not None
        assert sorted(copy.result() is None for copy in copies) == [False, True]


def test_a_newer_epoch_replaces_the_older_attempt(desk: Desk) -> None:
    (old,) = desk.claim(1)
    desk.lose(old)
    new = desk.claim_client.claim_suspect()
    assert new is not None
    assert desk.in_flight.add(new)
    assert (old.id, new.id) == (AttemptId(old.job_id, 1), AttemptId(old.job_id, 2))
    assert desk.in_flight.drop(old.job_id, old.epoch) is None
    assert not desk.in_flight.settle(old)
    desk.in_flight.remove(old)
    assert desk.in_flight.owns(new)


def test_a_table_that_handed_back_takes_nothing_more(desk: Desk) -> None:
    busy, settling = desk.claim(2)
    assert desk.in_flight.settle(settling)
    assert desk.in_flight.close() == [busy, settling]
    assert desk.in_flight.owns(busy)
    assert desk.in_flight.take_rest() == [busy]
    assert not desk.in_flight.add(busy)
    assert not desk.in_flight.wait_empty(0.01)
    desk.in_flight.remove(settling)
    assert desk.in_flight.wait_empty(0.01)


def test_a_slow_claim_makes_no_lease_longer_and_no_deadline_earlier(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claims.claim

    def slow(*args: Any, **options: Any) -> dict[str, Claim]:
        desk.now += 5
        return claim(*args, **options)

    monkeypatch.setattr(claims, "claim", slow)
    (attempt,) = desk.claim(1)
    assert attempt.claim.remaining_s is not None
    assert (attempt.claimed_at, attempt.deadline) == (1000.0, 1005.0 + attempt.claim.remaining_s)

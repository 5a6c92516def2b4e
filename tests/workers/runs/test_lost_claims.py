"""Claims that Postgres has stored and whose answer the worker never got: they go back to the queue, uncharged."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.jobs import claims, jobs
from headrace.store.jobs.claims import Claim
from headrace.store.schema.job_states import JobState
from headrace.workers.runs.claim_client import ClaimClient
from tests.store.making import new_flow
from tests.workers.conftest import Bench

ClaimJobs = Callable[..., dict[str, Claim]]


@pytest.fixture
def client(bench: Bench, db: Database) -> ClaimClient:
    return ClaimClient(db, owner="w1", queue=bench.queue, lease_s=60.0, stopping=threading.Event())


def losing_answers(claim: ClaimJobs, count: int) -> ClaimJobs:
    """Return a claim whose first answers are lost."""
    left = [Unavailable("the connection died after the commit")] * count

    def lost(*args: Any, **options: Any) -> dict[str, Claim]:
        found = claim(*args, **options)
        if left:
            raise left.pop()
        return found

    return lost


def test_a_claim_whose_answer_was_lost_is_made_again_uncharged(
    bench: Bench, client: ClaimClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = bench.submit(2)
    held = client.claim(first)
    assert held is not None
    monkeypatch.setattr(claims, "claim", losing_answers(claims.claim, 1))
    attempt = client.claim(second)
    assert attempt is not None
    assert (attempt.epoch, attempt.claim.attempt, attempt.claim.crashes) == (2, 1, 0)
    assert (bench.job(held.job_id).epoch, bench.job(held.job_id).state) == (1, JobState.RUNNING)


def test_what_was_claimed_unnoticed_goes_back_without_a_new_claim(
    bench: Bench, client: ClaimClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job_id,) = bench.submit(announce=False)
    monkeypatch.setattr(claims, "claim", losing_answers(claims.claim, 1))
    with pytest.raises(Unavailable):
        client.claim_waiting(1)
    assert bench.states([job_id]) == {JobState.RUNNING: 1}
    client.give_back_lost()
    row = bench.query("SELECT state, attempt, crashes, is_suspect FROM jobs WHERE id = :id", id=job_id)
    assert row == [("queued", 0, 0, False)]


def test_a_step_that_was_claimed_unnoticed_ends_its_cancelled_job(
    bench: Bench, client: ClaimClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = new_flow(bench.new_job, {"only": ()})
    (step,) = flow.steps
    jobs.accept(bench.db, [replace(flow, steps=(replace(step, queue=bench.queue),))])
    monkeypatch.setattr(claims, "claim", losing_answers(claims.claim, 1))
    with pytest.raises(Unavailable):
        client.claim_waiting(1)
    jobs.request_cancel(bench.db, bench.tenant_id, flow.id)
    assert bench.job(step.id).state is JobState.RUNNING
    client.give_back_lost()
    assert bench.states([flow.id, step.id]) == {JobState.CANCELLED: 2}

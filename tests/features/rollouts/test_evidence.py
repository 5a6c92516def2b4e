"""Evidence from real rows: jobs are accepted, claimed and finished, then read in windows."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from headrace.features.rollouts.evidence import Evidence, read_evidence
from headrace.features.rollouts.judge import Bounds, judge
from headrace.features.rollouts.rollouts import Rollout, read_rollout
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.jobs.jobs import request_cancel
from headrace.store.schema.job_states import JobState
from tests.refusals import Naming
from tests.store.making import AcceptOne, Query

USAGE = {"input_tokens": 5, "output_tokens": 11, "queue_ms": 40.0, "first_token_ms": 140.0, "compute_ms": 300.0}


@pytest.fixture
def rollout(query: Query) -> Rollout:
    """A canary from version 1 to version 2 that began two minutes ago."""
    (row,) = query("""
        INSERT INTO rollouts (
            id, model, alias, stable_version, candidate_version, mode, sticky_key, steps, started_by, started_at)
        VALUES (
            'rollout_1', 'tiny', 'default', 1, 2, 'canary', 'user', '[{"percent": 50, "hold_s": 60}]', 'test',
            now() - interval '2 minutes')
        RETURNING *""")
    return read_rollout(row)


class Jobs:
    """Makes jobs of the rollout."""

    def __init__(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        self._db, self._accept_one, self._query = db, accept_one, query

    def accept(self, version: int, *, age_s: float, rollout: str | None = "rollout_1") -> str:
        job_id = self._accept_one(model_version=version, queue=f"tiny@{version}")
        self._query(
            """UPDATE jobs SET rollout_id = :rollout, created_at = now() - make_interval(secs => :age_s)
            WHERE id = :id""",
            id=job_id,
            rollout=rollout,
            age_s=age_s,
        )
        return job_id

    def end(self, version: int, *, age_s: float, error: str | None = None, **usage: Any) -> str:
        job_id = self.accept(version, age_s=age_s)
        claimed = claim(self._db, "worker", f"tiny@{version}", [job_id], 60)[job_id]
        state = JobState.SUCCEEDED if error is None else JobState.FAILED
        told = None if error is None else {"code": error, "message": "failed"}
        output = {"text": "Hello"} if error is None else None
        used = USAGE | usage if error is None else None
        assert finish(self._db, [Finish(job_id, claimed.epoch, state, output, told, used, ())]) == {job_id}
        return job_id


@pytest.fixture
def jobs(db: Database, accept_one: AcceptOne, query: Query) -> Jobs:
    return Jobs(db, accept_one, query)


def look(db: Database, rollout: Rollout) -> Evidence:
    with db.autocommit() as connection:
        return read_evidence(connection, rollout)


def after(rollout: Rollout, evidence: Evidence) -> Rollout:
    """Return the rollout as the next look finds it."""
    return replace(rollout, evidence={"counts": evidence.as_json()})


def test_the_jobs_of_a_window_are_counted_once(db: Database, rollout: Rollout, jobs: Jobs) -> None:
    for _ in range(3):
        jobs.end(1, age_s=95)
    jobs.end(2, age_s=100)
    jobs.end(2, age_s=90, error="numerical_error")
    jobs.end(2, age_s=45)
    first = look(db, rollout)
    assert (first.num_candidate, first.num_stable) == (2, 3)
    numbers = first.measures["invalid_numbers"]
    assert (numbers.candidate.total, numbers.candidate.num, numbers.stable.total) == (1, 2, 0)
    assert numbers.own == {1.0: 1, 0.0: 1}
    # The job of 45 seconds ago is in the next window; a look without storing the first one repeats it.
    assert look(db, rollout) == first
    second = look(db, after(rollout, first))
    assert (second.num_candidate, second.num_stable) == (3, 3)
    assert look(db, after(rollout, second)) == second


def test_times_are_those_of_the_worker(db: Database, rollout: Rollout, jobs: Jobs) -> None:
    jobs.end(1, age_s=100)
    jobs.end(2, age_s=100, queue_ms=5000.0, first_token_ms=5200.0, compute_ms=700.0)
    # An encoder has no output tokens: the times of its input tokens are compared.
    jobs.end(1, age_s=99, output_tokens=0, first_token_ms=None, compute_ms=100.0)
    jobs.end(2, age_s=99, output_tokens=0, first_token_ms=None, compute_ms=250.0)
    found = look(db, rollout).measures
    shown = [
        (round(side.usual(is_share=False) or 0, 4) for side in (found[name].stable, found[name].candidate))
        for name in ("first_token", "token_time")
    ]
    assert [tuple(one) for one in shown] == [(0.1, 0.2), (0.02, 0.05)]


def test_the_times_of_a_job_with_two_attempts_are_not_compared(
    db: Database, rollout: Rollout, jobs: Jobs, query: Query
) -> None:
    again = jobs.end(2, age_s=100)
    query("UPDATE jobs SET epoch = 2 WHERE id = :id", id=again)
    jobs.end(1, age_s=100)
    found = look(db, rollout).measures
    assert [found[name].candidate.num for name in ("errors", "first_token", "token_time")] == [1, 0, 0]


def test_a_window_waits_for_its_slow_jobs_but_not_for_ever(db: Database, rollout: Rollout, jobs: Jobs) -> None:
    jobs.end(1, age_s=100)
    jobs.accept(2, age_s=100)
    assert look(db, rollout).num_candidate == 0
    impatient = replace(rollout, bounds={"settle_s": 60})
    assert look(db, impatient).measures["unfinished"].candidate.total == 1


def test_jobs_outside_of_the_rollout_and_answers_of_the_cache_are_not_read(
    db: Database, rollout: Rollout, jobs: Jobs, query: Query
) -> None:
    jobs.accept(2, age_s=100, rollout=None)
    jobs.accept(2, age_s=100, rollout="rollout_2")
    query("UPDATE jobs SET cache = 'hit', cache_source = 'job_1' WHERE id = :id", id=jobs.end(2, age_s=100))
    assert look(db, rollout).num_candidate == 0


def test_a_version_with_errors_is_judged_bad_and_its_callers_cancels_are_not(
    db: Database, tenant: str, rollout: Rollout, jobs: Jobs
) -> None:
    for _ in range(16):
        jobs.end(1, age_s=100)
        request_cancel(db, tenant, jobs.accept(2, age_s=100))
    assert not judge(look(db, rollout), Bounds()).is_bad
    for _ in range(16):
        jobs.end(1, age_s=100)
        jobs.end(2, age_s=100, error="engine_error")
    verdict = judge(look(db, rollout), Bounds())
    assert verdict.is_bad
    assert verdict.reason == Naming("errors: 50 %", " 0 %")


def test_a_quarter_of_an_hour_without_the_candidate_is_read_at_once(db: Database, rollout: Rollout, jobs: Jobs) -> None:
    assert look(db, rollout).read_until is None
    old = replace(rollout, started_at=rollout.started_at - timedelta(minutes=20))
    jobs.end(1, age_s=1000)
    found = look(db, old)
    assert (found.read_until, found.num_stable) == (old.started_at + timedelta(minutes=15), 0)
    assert look(db, after(old, found)).read_until == found.read_until, "the next quarter is not over"


def test_a_window_ends_half_a_minute_after_its_first_job(
    db: Database, rollout: Rollout, jobs: Jobs, query: Query
) -> None:
    def end(version: int, *, second: int) -> None:
        """End a job that was accepted so many seconds after the rollout began."""
        job_id = jobs.end(version, age_s=60)
        at = rollout.started_at + timedelta(seconds=second)
        query("UPDATE jobs SET created_at = :at WHERE id = :id", at=at, id=job_id)

    for version, second in ((2, 20), (2, 49), (2, 51), (1, 1), (1, 49), (1, 51)):
        end(version, second=second)
    found = look(db, rollout)
    assert (found.num_candidate, found.num_stable) == (2, 2)
    assert found.read_until == rollout.started_at + timedelta(seconds=50)
    jobs.accept(2, age_s=119)
    assert look(db, rollout).num_candidate == 0, "a job that runs holds its window"

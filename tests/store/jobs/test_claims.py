from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from headrace.store.db.database import Database
from headrace.store.db.presence import GONE_AFTER_S, beat_worker
from headrace.store.jobs.claims import Claim, Finish, Release, claim, finish, release, renew, still_running
from headrace.store.jobs.jobs import get, request_cancel, stored_deltas, timeline
from headrace.store.jobs.sweeps import expire_overdue, sweep_leases
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import Checkpoint, LogprobRow
from tests.store.making import QUEUE, AcceptOne, Query


def take(db: Database, *job_ids: str, owner: str = "worker", lease_s: float = 60.0) -> dict[str, Claim]:
    found = claim(db, owner, QUEUE, job_ids, lease_s)
    return found | claim(db, owner, QUEUE, job_ids, lease_s, suspects=True)


def success(claimed: Claim, **parts: Any) -> Finish:
    values: dict[str, Any] = {"output": {"text": "Hello"}, "error": None, "usage": None, "deltas": ("Hel", "lo")}
    return Finish(claimed.job_id, claimed.epoch, JobState.SUCCEEDED, **{**values, **parts})


class TestClaim:
    def test_a_claim_carries_what_the_worker_needs(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        job_id = accept_one(deadline_s=100.0, max_attempts=4, service_class=ServiceClass.BATCH)
        claimed = take(db, job_id)[job_id]
        assert (claimed.job_id, claimed.tenant_id, claimed.epoch, claimed.attempt) == (job_id, tenant, 1, 1)
        assert claimed.class_rank == CLASS_RANKS[ServiceClass.BATCH]
        assert (claimed.model, claimed.model_version, claimed.input_tokens, claimed.max_attempts) == ("tiny", 1, 5, 4)
        assert claimed.payload == {"input": {"prompt": "hello"}, "sampling": {"max_tokens": 4}}
        assert claimed.remaining_s is not None
        assert 60 < claimed.remaining_s < 100
        assert 0 <= claimed.queued_s < 40
        job = get(db, tenant, job_id)
        assert (job.state, job.epoch, job.attempt, job.owner) == (JobState.RUNNING, 1, 1, "worker")
        assert job.started_at is not None
        assert job.lease_expires_at is not None
        assert 59 < (job.lease_expires_at - job.started_at).total_seconds() <= 60

    def test_only_queued_jobs_of_the_queue_are_taken(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        free, held, elsewhere = accept_one(), accept_one(), accept_one(queue="other@1")
        overdue, cancelled = accept_one(deadline_s=-1.0), accept_one()
        take(db, held, owner="someone else")
        request_cancel(db, tenant, cancelled)
        assert set(take(db, free, held, elsewhere, overdue, cancelled, "job_unknown", free)) == {free}
        assert take(db) == {}

    def test_racing_workers_share_the_jobs_out(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        ids = [accept_one() for _ in range(40)]
        barrier = Barrier(8)

        def race(worker: int) -> set[str]:
            barrier.wait(10)
            return set(take(db, *ids[worker:], *ids[:worker], owner=f"w{worker}"))

        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(race, range(8), timeout=30))
        assert sum(len(jobs) for jobs in taken) == 40
        assert set().union(*taken) == set(ids)
        assert query("SELECT count(*) AS n, max(epoch) AS epoch FROM attempts") == [{"n": 40, "epoch": 1}]

    def test_the_first_start_is_kept(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        job_id = accept_one()
        take(db, job_id)
        started_at = get(db, tenant, job_id).started_at
        release(db, [Release(job_id, 1)])
        assert take(db, job_id)[job_id].epoch == 2
        assert get(db, tenant, job_id).started_at == started_at


class TestRenew:
    def test_a_lease_is_prolonged_from_now(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        job_id = accept_one()
        take(db, job_id, lease_s=1)
        before = get(db, tenant, job_id).lease_expires_at
        assert renew(db, "worker", {job_id: 1}, 100).held == {job_id}
        after = get(db, tenant, job_id).lease_expires_at
        assert before is not None
        assert after is not None
        assert 98 < (after - before).total_seconds() < 140

    def test_what_is_not_ours_is_absent(self, db: Database, accept_one: AcceptOne) -> None:
        ours, released, foreign = (accept_one() for _ in range(3))
        take(db, ours, released)
        take(db, foreign, owner="someone else")
        release(db, [Release(released, 1)])
        held = {ours: 1, released: 1, foreign: 1, "job_unknown": 1}
        assert renew(db, "worker", held, 60).held == {ours}
        assert renew(db, "worker", {ours: 2}, 60).held == frozenset(), "an epoch that was never given"
        assert renew(db, "worker", {}, 60).held == frozenset()

    def test_a_wish_to_cancel_is_told_with_the_renewal(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        wanted, other = accept_one(), accept_one()
        take(db, wanted, other)
        request_cancel(db, tenant, wanted)
        renewal = renew(db, "worker", {wanted: 1, other: 1}, 60)
        assert (renewal.held, renewal.cancelled) == ({wanted, other}, {wanted})


class TestFinish:
    def test_everything_an_end_leaves_is_there(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one()
        usage = {"input_tokens": 5, "output_tokens": 2, "queue_ms": 1.5, "compute_ms": 2.5}
        assert finish(db, [success(take(db, job_id)[job_id], usage=usage)]) == {job_id}
        job = get(db, tenant, job_id)
        assert (job.state, job.output, job.error, job.usage) == (JobState.SUCCEEDED, {"text": "Hello"}, None, usage)
        assert (job.owner, job.lease_expires_at, job.num_deltas) == (None, None, 2)
        assert job.started_at is not None
        assert job.completed_at is not None
        assert job.started_at < job.completed_at
        assert query("SELECT job_id, state, epoch FROM job_terminal") == [
            {"job_id": job_id, "state": "succeeded", "epoch": 1}
        ]
        assert query("SELECT outcome, ended_at > started_at AS ended, worker FROM attempts") == [
            {"outcome": "succeeded", "ended": True, "worker": "worker"}
        ]

    def test_a_batch_has_an_outcome_each(self, db: Database, tenant: str, accept_one: AcceptOne, query: Query) -> None:
        ids = [accept_one() for _ in range(4)]
        claims = take(db, *ids)
        error = {"code": "numerical_error", "message": "NaN", "retryable": False, "attempt": 1}
        finishes = [
            success(claims[ids[0]]),
            Finish(ids[1], 1, JobState.FAILED, None, error, None, ()),
            Finish(ids[2], 1, JobState.CANCELLED, {"text": "Hel"}, None, None, ("Hel",)),
            Finish(ids[3], 1, JobState.EXPIRED, None, {"code": "deadline_exceeded", "message": "late"}, None, ()),
        ]
        assert finish(db, finishes) == set(ids)
        assert [get(db, tenant, job_id).state for job_id in ids] == [f.state for f in finishes]
        assert query("SELECT error FROM attempts WHERE outcome = 'failed'") == [{"error": error}]
        assert query("SELECT count(*) AS n FROM job_streams") == [{"n": 2}], "no row for a job that streamed nothing"

    def test_a_paused_workers_late_result_is_refused(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id, healthy = accept_one(), accept_one()
        old = take(db, job_id, owner="paused", lease_s=0)[job_id]
        neighbour = take(db, healthy, owner="paused")[healthy]
        assert sweep_leases(db).requeued == 1
        late = success(old, output={"text": "old"}, deltas=("old",))
        assert finish(db, [late]) == set(), "nobody holds it: the stale epoch must not end it"
        new = take(db, job_id, owner="next")[job_id]
        assert finish(db, [late, success(neighbour)]) == {healthy}, "someone holds it; the batch is not lost"
        assert renew(db, "paused", {job_id: old.epoch}, 60).held == frozenset()
        assert release(db, [Release(job_id, old.epoch)]) == set()
        assert finish(db, [success(new, output={"text": "new"}, deltas=("new",))]) == {job_id}
        assert finish(db, [late]) == set(), "it has ended"
        assert get(db, tenant, job_id).output == {"text": "new"}
        stream = stored_deltas(db, tenant, job_id)
        assert stream is not None
        assert (stream.epoch, stream.deltas) == (2, ["new"])
        outcomes = query("SELECT outcome FROM attempts WHERE job_id = :id ORDER BY epoch", id=job_id)
        assert [row["outcome"] for row in outcomes] == ["worker_lost", "succeeded"]

    def test_a_result_told_twice_ends_the_job_once(self, db: Database, accept_one: AcceptOne) -> None:
        job_id = accept_one()
        result = success(take(db, job_id)[job_id])
        assert finish(db, [result, result]) == {job_id}
        assert finish(db, [result]) == set()
        assert finish(db, []) == set()

    def test_the_database_itself_refuses_a_second_end(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one()
        result = success(take(db, job_id)[job_id])
        finish(db, [result])
        query("UPDATE jobs SET state = 'running', owner = 'x', lease_expires_at = now()")  # as a wrong statement would
        with pytest.raises(IntegrityError, match="pk_job_terminal"):
            finish(db, [Finish(job_id, 1, JobState.FAILED, None, None, None, ())])
        assert get(db, tenant, job_id).state is JobState.RUNNING, "the whole transaction is taken back"
        assert query("SELECT count(*) AS n FROM job_terminal") == [{"n": 1}]

    @pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
    def test_a_job_cannot_finish_as_something_unfinished(self, state: JobState) -> None:
        with pytest.raises(ValueError, match=state):
            Finish("job_x", 1, state, None, None, None, ())

    def test_a_nul_does_not_keep_a_job_from_ending(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        job_id = accept_one()
        output = {"text": "a\0b", "note": "a literal \\u0000 stays", "logprobs": ({"token": "\0"},)}
        assert finish(db, [success(take(db, job_id)[job_id], output=output, deltas=("a\0", "b"))]) == {job_id}
        kept = {"text": "a\ufffdb", "note": "a literal \\u0000 stays", "logprobs": [{"token": "\ufffd"}]}
        assert get(db, tenant, job_id).output == kept
        stream = stored_deltas(db, tenant, job_id)
        assert stream is not None
        assert stream.deltas == ["a\ufffd", "b"]

    def test_half_a_character_does_not_keep_a_job_from_ending(
        self, db: Database, tenant: str, accept_one: AcceptOne
    ) -> None:
        job_id = accept_one()
        assert finish(db, [success(take(db, job_id)[job_id], output={"text": "\ud800"})]) == {job_id}
        assert get(db, tenant, job_id).output == {"text": "?"}


@pytest.mark.parametrize("ending", ["finish", "release", "sweep", "expire", "cancel"])
def test_an_attempt_that_ends_changes_no_other(
    db: Database, tenant: str, accept_one: AcceptOne, query: Query, ending: str
) -> None:
    job_id, other = accept_one(), accept_one()
    for each in (job_id, other):
        take(db, each)
        release(db, [Release(each, 1, charge=True, checkpoint=Checkpoint(("said",), ((1,),), ((1, 0),)))])
    claims = take(db, job_id, other)

    def others() -> list[list[dict[str, object]]]:
        tables = ("attempts", "job_checkpoints", "job_events", "job_terminal", "job_streams")
        rows = [query(f"SELECT * FROM {table} WHERE job_id = :id ORDER BY 1, 2", id=other) for table in tables]
        first = "SELECT * FROM attempts WHERE job_id = :id AND epoch = 1"
        return [*rows, query("SELECT * FROM jobs WHERE id = :id", id=other), query(first, id=job_id)]

    before = others()
    match ending:
        case "finish":
            assert finish(db, [success(claims[job_id])]) == {job_id}
        case "release":
            assert release(db, [Release(job_id, 2)]) == {job_id}
        case "sweep":
            query("UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE id = :id", id=job_id)
            assert sweep_leases(db).num_jobs == 1
        case "expire":
            query("UPDATE jobs SET deadline_at = now() - interval '1 s' WHERE id = :id", id=job_id)
            assert expire_overdue(db, grace_s=0) == [job_id]
        case _:
            request_cancel(db, tenant, job_id)
            assert release(db, [Release(job_id, 2)]) == {job_id}
    assert others() == before
    assert query("SELECT ended_at FROM attempts WHERE job_id = :id AND epoch = 2", id=job_id)[0]["ended_at"]


def test_a_job_that_has_ended_is_not_taken_for_one_that_is_locked(db: Database, accept_one: AcceptOne) -> None:
    """A worker that lost the answer to its finish would retry it for ever."""
    job_id, running = accept_one(), accept_one()
    held = take(db, job_id, running)
    assert finish(db, [success(held[job_id])]) == {job_id}
    assert finish(db, [success(held[job_id])]) == set()
    assert still_running(db, {job_id: 1, running: 1}) == {running}


def test_what_is_too_long_for_a_worker_is_left_to_one_that_can_hold_it_and_lives(
    db: Database, accept_one: AcceptOne, query: Query
) -> None:
    job_id = accept_one(cost_tokens=100)
    beat_worker(db, "small", QUEUE, 50)
    beat_worker(db, "large", QUEUE, 100)
    assert claim(db, "small", QUEUE, [job_id], 60, capacity=50) == {}
    query(f"UPDATE worker_processes SET seen_at = now() - interval '{GONE_AFTER_S + 1} s' WHERE id = 'large'")
    assert set(claim(db, "small", QUEUE, [job_id], 60, capacity=50)) == {job_id}, "nobody else takes it"


class TestRelease:
    def test_a_job_handed_back_is_not_charged_and_waits_its_turn(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one(max_attempts=1)
        take(db, job_id)
        assert release(db, [Release(job_id, 1)]) == {job_id}
        job = get(db, tenant, job_id)
        assert (job.state, job.epoch, job.attempt) == (JobState.QUEUED, 1, 0)
        assert (job.owner, job.lease_expires_at, job.announced_at) == (None, None, None)
        assert query("SELECT outcome, ended_at IS NOT NULL AS ended FROM attempts") == [
            {"outcome": "released", "ended": True}
        ]
        assert timeline(db, tenant, job_id)[-1].detail == {"charged": False}
        again = take(db, job_id)[job_id]
        assert (again.epoch, again.attempt) == (2, 1)

    def test_a_charged_release_costs_an_attempt(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        job_id = accept_one(max_attempts=2)
        take(db, job_id)
        assert release(db, [Release(job_id, 1, charge=True)]) == {job_id}
        assert get(db, tenant, job_id).attempt == 1
        assert take(db, job_id)[job_id].attempt == 2

    def test_the_last_charged_release_fails_the_job(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one(max_attempts=1)
        take(db, job_id)
        assert release(db, [Release(job_id, 1, charge=True)]) == {job_id}
        job = get(db, tenant, job_id)
        assert job.state is JobState.FAILED
        assert job.completed_at is not None
        assert job.error is not None
        assert (job.error["code"], job.error["attempt"]) == ("max_attempts_exceeded", 1)
        assert query("SELECT state FROM job_terminal") == [{"state": "failed"}]

    def test_a_later_checkpoint_replaces_the_one_before_it_as_a_whole(
        self, db: Database, accept_one: AcceptOne
    ) -> None:
        job_id = accept_one()
        for epoch in (1, 2):
            likely = (LogprobRow(epoch, -0.5, ()),)
            emitted = Checkpoint(("said",) * epoch, ((epoch,),) * epoch, ((epoch, 0),), (likely,) * epoch)
            take(db, job_id)
            assert release(db, [Release(job_id, epoch, checkpoint=emitted)]) == {job_id}
        assert take(db, job_id)[job_id].checkpoint == emitted

    def test_a_job_that_ends_by_it_leaves_nothing_to_go_on_from(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        """Emitted text is the tenant's content, which retention would not delete there."""
        job_id = accept_one(max_attempts=2)
        emitted = Checkpoint(("said",), ((1,),), ((1, 0),))
        for epoch, left in ((1, [{"job_id": job_id}]), (2, [])):
            take(db, job_id)
            assert release(db, [Release(job_id, epoch, charge=True, checkpoint=emitted)]) == {job_id}
            assert query("SELECT job_id FROM job_checkpoints") == left

    @pytest.mark.parametrize("charge", [False, True])
    def test_a_job_that_shall_be_cancelled_does_not_go_back(
        self, db: Database, tenant: str, accept_one: AcceptOne, charge: bool, query: Query
    ) -> None:
        job_id = accept_one(max_attempts=1)
        take(db, job_id)
        request_cancel(db, tenant, job_id)
        assert release(db, [Release(job_id, 1, charge=charge)]) == {job_id}
        job = get(db, tenant, job_id)
        assert (job.state, job.error) == (JobState.CANCELLED, None)
        assert job.completed_at is not None
        assert query("SELECT state FROM job_terminal") == [{"state": "cancelled"}]

    def test_a_job_that_is_not_ours_stays(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        job_id = accept_one()
        take(db, job_id)
        assert release(db, [Release(job_id, 2), Release("job_unknown", 1)]) == set()
        assert release(db, []) == set()
        assert get(db, tenant, job_id).state is JobState.RUNNING

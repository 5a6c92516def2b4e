from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from headrace.store.db.database import Database
from headrace.store.db.leader_election import lead
from headrace.store.errors import Unavailable
from headrace.store.jobs.claims import Finish, Release, claim, finish, release, renew
from headrace.store.jobs.erasure import purge_job
from headrace.store.jobs.jobs import Idempotency, get, request_cancel, timeline
from headrace.store.jobs.sweeps import SweepResult, expire_overdue, fail_rejected, leader_lock, purge, sweep_leases
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import register_version
from headrace.store.registry.verification import Verification
from headrace.store.registry.verification_report import VerificationReport
from headrace.store.scheduling.dispatch_queries import take_waiting
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from tests.processes import wait_for
from tests.store.making import QUEUE, AcceptOne, Query

NOTHING = SweepResult(requeued=0, failed=0, cancelled=0)


def start(db: Database, *job_ids: str, lease_s: float = 60.0, suspects: bool = False) -> None:
    assert set(claim(db, "worker", QUEUE, job_ids, lease_s, suspects=suspects)) == set(job_ids)


def end(db: Database, job_id: str) -> None:
    start(db, job_id)
    assert finish(db, [Finish(job_id, 1, JobState.SUCCEEDED, {"text": ""}, None, None, ())]) == {job_id}


def test_the_queued_jobs_of_a_rejected_version_fail_and_no_others(
    db: Database, tenant: str, accept_one: AcceptOne, query: Query
) -> None:
    refused, kept, running = accept_one(), accept_one(model="other", queue="other@1"), accept_one()
    start(db, running)
    for model in ("tiny", "other"):
        about = {"source": "s", "digest": "d", "dtype": "auto", "context_window": 64, "files": {}, "actor": "tests"}
        register_version(db, model=model, runner="torch", **about)
    assert fail_rejected(db) == []
    verification = Verification(db, "tiny", 1, worker="w", lease_s=60)
    verification.claim()
    verification.reject("a wrong digest", VerificationReport(worker="w"))
    assert fail_rejected(db) == [refused]
    job = get(db, tenant, refused)
    assert job.error is not None
    assert (job.state, job.error["code"], job.error["retryable"]) == (JobState.FAILED, "model_rejected", False)
    assert {get(db, tenant, kept).state, get(db, tenant, running).state} == {JobState.QUEUED, JobState.RUNNING}
    assert query("SELECT job_id FROM job_terminal") == [{"job_id": refused}]
    assert fail_rejected(db) == []


class TestLeases:
    def test_a_lost_workers_job_goes_back_and_its_attempt_is_charged(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one()
        start(db, job_id, lease_s=0)
        assert sweep_leases(db) == SweepResult(requeued=1, failed=0, cancelled=0)
        assert sweep_leases(db) == NOTHING
        job = get(db, tenant, job_id)
        assert (job.state, job.attempt, job.epoch, job.announced_at) == (JobState.QUEUED, 1, 1, None)
        assert (job.owner, job.lease_expires_at, job.completed_at) == (None, None, None)
        assert timeline(db, tenant, job_id)[-1].kind == "lease_expired"
        assert query("SELECT outcome, error ->> 'code' AS code, ended_at IS NULL AS open FROM attempts") == [
            {"outcome": "worker_lost", "code": "worker_lost", "open": False}
        ]

    def test_a_job_whose_lease_nobody_could_renew_is_not_charged(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one(max_attempts=1)
        for _ in range(4):
            start(db, job_id, lease_s=0)
            assert sweep_leases(db, blame=False) == SweepResult(requeued=1, failed=0, cancelled=0)
        job = get(db, tenant, job_id)
        assert (job.state, job.attempt, job.epoch) == (JobState.QUEUED, 0, 4)
        assert query("SELECT crashes, is_suspect FROM jobs") == [{"crashes": 0, "is_suspect": False}]
        assert query("SELECT DISTINCT outcome FROM attempts") == [{"outcome": "worker_lost"}]

    def test_a_suspect_stays_one_when_nobody_is_to_blame(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        """Its worker died of it once; that Postgres was away later clears it of nothing."""
        job_id = accept_one()
        start(db, job_id, lease_s=0)
        sweep_leases(db)
        start(db, job_id, lease_s=0, suspects=True)
        assert sweep_leases(db, blame=False) == SweepResult(requeued=1, failed=0, cancelled=0)
        assert query("SELECT crashes, is_suspect, attempt FROM jobs") == [
            {"crashes": 1, "is_suspect": True, "attempt": 1}
        ]

    def test_a_job_without_attempts_left_fails(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one(max_attempts=2, webhook={"url": "https://example.com/x"})
        for crashes in range(2):
            start(db, job_id, lease_s=0, suspects=crashes > 0)
            result = sweep_leases(db)
        assert result == SweepResult(requeued=0, failed=1, cancelled=0, ended=(job_id,))
        job = get(db, tenant, job_id)
        assert job.state is JobState.FAILED
        assert job.completed_at is not None
        assert job.error is not None
        assert (job.error["code"], job.error["attempt"]) == ("max_attempts_exceeded", 2)
        assert query("SELECT state, epoch FROM job_terminal") == [{"state": "failed", "epoch": 2}]
        assert query("SELECT type FROM webhook_deliveries") == [{"type": "job.failed"}]
        assert [row["outcome"] for row in query("SELECT outcome FROM attempts")] == ["worker_lost", "worker_lost"]

    def test_a_job_that_three_workers_died_of_is_poison_and_a_dead_letter(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one(max_attempts=9)
        for crashes in range(3):
            assert claim(db, "worker", QUEUE, [job_id], 60, suspects=crashes == 0) == {}, "not in that company"
            start(db, job_id, lease_s=0, suspects=crashes > 0)
            result = sweep_leases(db)
        assert result == SweepResult(requeued=0, failed=1, cancelled=0, ended=(job_id,))
        job = get(db, tenant, job_id)
        assert job.error is not None
        assert (job.state, job.attempt, job.error["code"]) == (JobState.FAILED, 3, "poison")
        assert query("SELECT job_id, tenant_id, queue, code FROM dead_letters") == [
            {"job_id": job_id, "tenant_id": tenant, "queue": QUEUE, "code": "poison"}
        ]

    @pytest.mark.parametrize("is_released", [False, True], ids=["swept", "released by a worker with a dead engine"])
    def test_the_first_lost_attempt_on_an_inference_server_is_charged_and_not_blamed_on_the_job(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query, is_released: bool
    ) -> None:
        job_id = accept_one(max_attempts=9)
        vllm = EngineSpec(kind=EngineKind.VLLM, served_model="tiny", url="http://127.0.0.1:1")
        about: dict[str, Any] = {"source": "", "digest": "0" * 64, "dtype": "auto", "context_window": 8, "files": {}}
        register_version(db, model="tiny", runner="vllm", engine=vllm, actor="tests", **about)
        seen = []
        for lost in range(4):
            start(db, job_id, lease_s=0, suspects=lost > 1)
            if is_released:
                release(db, [Release(job_id, lost + 1, charge=True, crashed=True)])
            else:
                sweep_leases(db)
            (row,) = query("SELECT attempt, crashes, is_suspect FROM jobs")
            seen.append(tuple(row.values()))
        assert seen == [(1, 0, False), (2, 1, True), (3, 2, True), (4, 3, True)]
        assert (get(db, tenant, job_id).error or {})["code"] == "poison"

    def test_a_live_lease_is_left_alone(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        kept, renewed = accept_one(), accept_one()
        start(db, kept)
        start(db, renewed, lease_s=0)
        renew(db, "worker", {renewed: 1}, 60)
        assert sweep_leases(db) == NOTHING
        assert get(db, tenant, renewed).state is JobState.RUNNING

    def test_a_lost_job_that_shall_be_cancelled_is(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one(max_attempts=1)
        start(db, job_id, lease_s=0)
        request_cancel(db, tenant, job_id)
        assert sweep_leases(db) == SweepResult(requeued=0, failed=0, cancelled=1, ended=(job_id,))
        job = get(db, tenant, job_id)
        assert (job.state, job.error) == (JobState.CANCELLED, None)
        assert query("SELECT state FROM job_terminal") == [{"state": "cancelled"}]

    def test_the_longest_lost_come_first(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        ids = [accept_one() for _ in range(5)]
        for job_id in reversed(ids):
            start(db, job_id, lease_s=0)
        sweep_leases(db, limit=2)
        assert [get(db, tenant, job_id).state.value for job_id in ids] == ["running"] * 3 + ["queued"] * 2


class TestDeadlines:
    def test_a_queued_job_past_its_deadline_expires(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        overdue, timely = accept_one(deadline_s=-1.0, webhook={"url": "https://example.com/x"}), accept_one()
        assert expire_overdue(db) == [overdue]
        assert expire_overdue(db) == []
        job = get(db, tenant, overdue)
        assert job.state is JobState.EXPIRED
        assert job.completed_at is not None
        assert job.error is not None
        assert job.error["code"] == "deadline_exceeded"
        assert get(db, tenant, timely).state is JobState.QUEUED
        assert query("SELECT job_id, state FROM job_terminal") == [{"job_id": overdue, "state": "expired"}]
        assert query("SELECT type FROM webhook_deliveries") == [{"type": "job.expired"}]

    def test_a_running_job_has_a_grace(self, db: Database, tenant: str, accept_one: AcceptOne, query: Query) -> None:
        job_id = accept_one()
        start(db, job_id)
        query("UPDATE jobs SET deadline_at = now() - interval '10 s'")
        assert len(expire_overdue(db, grace_s=20)) == 0
        assert len(expire_overdue(db, grace_s=9)) == 1
        assert get(db, tenant, job_id).state is JobState.EXPIRED
        late = Finish(job_id, 1, JobState.SUCCEEDED, {"text": "late"}, None, None, ())
        assert finish(db, [late]) == set(), "its worker comes too late"
        assert query("SELECT outcome FROM attempts") == [{"outcome": "expired"}]

    def test_no_more_than_the_limit_at_once_and_the_longest_overdue_first(
        self, db: Database, accept_one: AcceptOne
    ) -> None:
        last, first, second = (accept_one(deadline_s=-seconds) for seconds in (10.0, 1000.0, 100.0))
        assert [set(expire_overdue(db, 2)) for _ in range(3)] == [{first, second}, {last}, set()]


class TestPurging:
    @pytest.fixture
    def end(self, db: Database, tenant: str) -> Callable[[str], None]:
        """End a job and delete its output."""

        def end_and_empty(job_id: str) -> None:
            end(db, job_id)
            assert purge_job(db, tenant, job_id, actor="tests")

        return end_and_empty

    def age(self, query: Query, seconds: float) -> None:
        query("UPDATE jobs SET completed_at = completed_at - :s * interval '1 s'", s=seconds)
        query("UPDATE idempotency_keys SET created_at = created_at - :s * interval '1 s'", s=seconds)

    def test_emptied_jobs_go_with_all_they_left_after_their_time(
        self, db: Database, accept_one: AcceptOne, query: Query, end: Callable[[str], None]
    ) -> None:
        end(accept_one(idempotency=Idempotency("r", "k", "f")))
        waiting, running = accept_one(), accept_one()
        start(db, running)
        self.age(query, 100)
        assert purge(db, 200, 200, 10) == 0
        assert purge(db, 50, 200, 10) == 1
        assert {row["id"] for row in query("SELECT id FROM jobs")} == {waiting, running}
        left = "SELECT job_id FROM attempts WHERE outcome = 'succeeded' UNION SELECT job_id FROM idempotency_keys"
        assert query(left) == []

    def test_idempotency_keys_go_before_their_jobs(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one(idempotency=Idempotency("r", "k", "f"))
        end(db, job_id)
        self.age(query, 100)
        accept_one(idempotency=Idempotency("r", "k", "f"), tenant_id=other_tenant)
        accept_one(idempotency=Idempotency("r", "k2", "f"))
        accept_one(idempotency=Idempotency("r2", "k", "f"))
        assert purge(db, 200, 50, 10) == 1
        assert get(db, tenant, job_id).state is JobState.SUCCEEDED
        assert accept_one(idempotency=Idempotency("r", "k", "f")) != job_id

    @pytest.mark.parametrize("kept", ["input_purged_at", "output_purged_at"])
    def test_a_job_that_is_half_emptied_stays(
        self, db: Database, accept_one: AcceptOne, query: Query, end: Callable[[str], None], kept: str
    ) -> None:
        end(accept_one())
        query(f"UPDATE jobs SET {kept} = NULL")
        self.age(query, 100)
        assert purge(db, 50, 200, 10) == 0

    def test_a_job_that_is_not_emptied_stays(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        end(db, accept_one())
        self.age(query, 100)
        assert purge(db, 50, 50, 10) == 0

    def test_no_more_than_the_limit_at_once(
        self, db: Database, accept_one: AcceptOne, query: Query, end: Callable[[str], None]
    ) -> None:
        for _ in range(3):
            end(accept_one())
        self.age(query, 100)
        assert [purge(db, 50, 50, 2) for _ in range(3)] == [2, 1, 0]


class TestTwoDispatchers:
    def test_one_leads_and_the_other_waits(self, db: Database, settings: Settings) -> None:
        standby = Database(settings.database_url, application_name="standby")
        with leader_lock(db) as leads:
            assert leads
            with leader_lock(standby) as also:
                assert not also
            with leader_lock(standby) as still:
                assert not still, "the standby's leaving must not free the leader's lock"
        with leader_lock(standby) as leads:
            assert leads
        standby.close()

    def test_the_lock_of_a_dead_leader_is_free(self, db: Database, query: Query) -> None:
        def die() -> None:
            with leader_lock(db) as leads:
                assert leads
                query("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'")

        die()
        with leader_lock(db) as leads:
            assert leads

    def test_a_leader_notices_that_its_connection_was_ended(
        self, db: Database, query: Query, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("headrace.store.db.leader_election.CHECK_S", 0)
        with leader_lock(db) as leads:
            assert leads
            leads.check()
            query("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'")
            with leader_lock(db) as also:
                assert also, "another may lead from now on"
            with pytest.raises(Unavailable, match="lead"):
                leads.check()

    def test_a_silent_leader_loses_the_lead(
        self, db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As one that is stopped: its connection stays open, for its kernel answers for it."""
        monkeypatch.setattr("headrace.store.db.leader_election.CHECK_S", 0)
        standby = Database(settings.database_url, application_name="standby")

        def takes_over() -> bool:
            with lead(standby, 1) as leads:
                return leads is not None

        with lead(db, 1, silence_s=1) as leads:
            assert leads
            wait_for(takes_over, "the standby leads")
            with pytest.raises(Unavailable, match="lead"):
                leads.check()
        standby.close()

    def test_sweeping_together_does_everything_once(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        lost = [accept_one(max_attempts=1 + n % 2) for n in range(30)]
        start(db, *lost, lease_s=0)
        for _ in range(30):
            accept_one(deadline_s=-1.0)
        barrier = Barrier(4)

        def dispatch(_: int) -> tuple[int, int, int, list[str]]:
            barrier.wait(10)
            swept = [sweep_leases(db, 7) for _ in range(9)]
            expired = sum(len(expire_overdue(db, 7)) for _ in range(9))
            taken = [job_id for _ in range(9) for job_id in take_waiting(db, QUEUE, 7)]
            return sum(s.requeued for s in swept), sum(s.failed for s in swept), expired, taken

        with ThreadPoolExecutor(4) as pool:
            requeued, failed, expired, taken = zip(*pool.map(dispatch, range(4), timeout=60), strict=True)
        assert (sum(requeued), sum(failed), sum(expired)) == (15, 15, 30)
        announced = [job_id for jobs in taken for job_id in jobs]
        assert len(announced) == len(set(announced)), "no job is announced by both"
        assert query("SELECT count(*) AS n FROM job_terminal") == [{"n": 45}]

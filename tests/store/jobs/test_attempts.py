"""Attempts of jobs exactly: all that a claim, a release, a lost lease and an end write, and whom they tell."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from headrace.features.response_cache import entries as response_cache
from headrace.features.response_cache import sharers
from headrace.features.response_cache.entries import CacheLookup
from headrace.features.responses.new_response import NewResponse
from headrace.store.db.database import Database
from headrace.store.db.presence import beat_worker
from headrace.store.errors import Unavailable
from headrace.store.jobs import claims
from headrace.store.jobs.claims import (
    Claim,
    Finish,
    Release,
    Renewal,
    RowLocked,
    claim,
    finish,
    owned,
    release,
    renew,
    still_open,
    still_running,
)
from headrace.store.jobs.erasure import erase
from headrace.store.jobs.jobs import Accepted, accept, get, request_cancel, timeline
from headrace.store.jobs.parent_part import parent_part
from headrace.store.jobs.sweeps import LostAttempt, SweepResult, expire_overdue, fail_rejected, purge, sweep_leases
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.registry.models import register_version
from headrace.store.registry.verification import Verification
from headrace.store.registry.verification_report import VerificationReport
from headrace.store.schema.job_states import CacheResult, JobState
from headrace.store.streams.checkpoints import Checkpoint
from tests.processes import wait_for
from tests.refusals import Naming
from tests.sealing import TurnedSeal
from tests.store.making import CHAIN, JOIN, QUEUE, AcceptOne, MakeJob, Query, new_flow

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
USAGE = {"input_tokens": 5, "output_tokens": 2, "queue_ms": 1.0, "first_token_ms": 2.0, "compute_ms": 3.0}


def start(db: Database, *job_ids: str, **options: Any) -> dict[str, Claim]:
    found = claim(db, "worker", QUEUE, job_ids, 60.0, **options)
    assert found.keys() == set(job_ids)
    return found


def success(claimed: Claim, **changes: Any) -> Finish:
    values: dict[str, Any] = {"output": {"text": "a"}, "error": None, "usage": USAGE, **changes}
    state = values.pop("state", JobState.SUCCEEDED)
    return Finish(
        claimed.job_id, claimed.epoch, state, tenant_id=claimed.tenant_id, parent_id=claimed.parent_id, **values
    )


def reject(db: Database, model: str) -> None:
    about = {"source": "s", "digest": "d", "dtype": "auto", "context_window": 64, "files": {}, "actor": "tests"}
    register_version(db, model=model, runner="torch", **about)
    verification = Verification(db, model, 1, worker="w", lease_s=60)
    verification.claim()
    verification.reject("a wrong digest", VerificationReport(worker="w"))


@contextmanager
def locked(db: Database, *job_ids: str) -> Iterator[None]:
    """Another transaction has locked the rows of these jobs."""
    with db.begin() as connection:
        connection.execute(text("SELECT id FROM jobs WHERE id = ANY(:ids) FOR UPDATE"), {"ids": list(job_ids)})
        yield


class TestClaims:
    def test_a_claim_has_all_that_the_job_has(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        lookup = CacheLookup("d", 60.0)
        job_id = accept_one(traceparent=TRACE, lookup=lookup, input_tokens=6, max_attempts=4, task="embed")
        query("UPDATE jobs SET created_at = now() - interval '1 h', restarts_after = 2 WHERE id = :id", id=job_id)
        claimed = start(db, job_id)[job_id]
        assert 3600 <= claimed.queued_s < 3660
        assert claimed.remaining_s is not None
        assert 3500 < claimed.remaining_s <= 3600
        expected = Claim(
            job_id=job_id,
            tenant_id=tenant,
            class_rank=CLASS_RANKS[ServiceClass.STANDARD],
            epoch=1,
            attempt=1,
            model="tiny",
            model_version=1,
            payload={"input": {"prompt": "hello"}, "sampling": {"max_tokens": 4}},
            input_tokens=6,
            remaining_s=claimed.remaining_s,
            queued_s=claimed.queued_s,
            max_attempts=4,
            restarts_after=2,
            is_source=True,
            traceparent=TRACE,
            claimed_at=claimed.claimed_at,
            task="embed",
        )
        assert claimed == expected
        assert claimed.claimed_at is not None
        for lost in (1, 2):
            query("UPDATE attempts SET ended_at = now() - make_interval(mins => 10 * CAST(epoch AS int))")
            release(db, [Release(job_id, lost)])
            query("UPDATE attempts SET ended_at = now() - make_interval(mins => 10 * CAST(epoch AS int))")
            again = start(db, job_id)[job_id]
            assert (again.epoch, again.attempt) == (lost + 1, 1)
            assert again.waited_s is not None
            assert 600 * lost <= again.waited_s < 600 * lost + 300, "since the attempt before, and no other"

    def test_a_worker_takes_the_jobs_of_its_adapters_and_records_its_engine(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        ours, adapters, foreign = accept_one(), accept_one(queue="lora@1"), accept_one(queue="other@1")
        ids = [ours, adapters, foreign]
        assert still_open(db, QUEUE, ids, adapters=["lora@1"]) == {ours, adapters}
        assert still_open(db, QUEUE, ids) == {ours}
        assert claim(db, "w1", QUEUE, ids, 60.0, adapters=["lora@1"], engine="vLLM 1").keys() == {ours, adapters}
        assert still_open(db, QUEUE, ids, adapters=["lora@1"]) == set()
        assert sorted(one.job_id for one in owned(db, "w1")) == sorted([ours, adapters])
        assert owned(db, "w2") == []
        assert timeline(db, tenant, ours)[-1].detail == {"attempt": 1, "worker": "w1", "engine": "vLLM 1"}
        release(db, [Release(ours, 1)])
        start(db, ours)
        event = timeline(db, tenant, ours)[-1]
        assert (event.epoch, event.detail) == (2, {"attempt": 1, "worker": "worker"})
        assert query("SELECT epoch, attempt, worker FROM attempts WHERE job_id = :id ORDER BY epoch", id=ours) == [
            {"epoch": 1, "attempt": 1, "worker": "w1"},
            {"epoch": 2, "attempt": 1, "worker": "worker"},
        ]

    def test_a_queued_job_that_shall_be_cancelled_is_left(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one()
        query("UPDATE jobs SET cancel_requested_at = now()")
        assert claim(db, "worker", QUEUE, [job_id], 60.0) == {}

    @pytest.mark.parametrize(
        ("tokens", "others", "is_taken"),
        [
            ((100, 5), [("able", QUEUE, 200)], True),
            ((101, 5), [("able", QUEUE, 101)], False),
            ((5, 101), [("able", QUEUE, 101)], False),
            ((101, 5), [("able", QUEUE, None)], False),
            ((101, 5), [("small", QUEUE, 100)], True),
            ((101, 5), [("elsewhere", "other@1", 200)], True),
            ((101, 5), [], True),
        ],
    )
    def test_a_job_that_is_too_long_is_left_to_a_worker_that_can_hold_it(
        self,
        db: Database,
        accept_one: AcceptOne,
        tokens: tuple[int, int],
        others: list[tuple[str, str, int | None]],
        is_taken: bool,
    ) -> None:
        job_id = accept_one(cost_tokens=tokens[0], input_tokens=tokens[1])
        for name, queue, capacity in others:
            beat_worker(db, name, queue, capacity)
        expected = {job_id} if is_taken else set()
        assert still_open(db, QUEUE, [job_id], capacity=100) == expected
        assert still_open(db, QUEUE, [job_id]) == {job_id}
        assert claim(db, "worker", QUEUE, [job_id], 60.0, capacity=100).keys() == expected

    def test_a_locked_row_is_left_out_and_told_from_one_that_is_gone(self, db: Database, accept_one: AcceptOne) -> None:
        queued, running, free = accept_one(), accept_one(), accept_one()
        held = start(db, running, free)
        with locked(db, queued, running):
            assert claim(db, "worker", QUEUE, [queued], 60.0) == {}
            assert still_open(db, QUEUE, [queued]) == {queued}
            found = renew(db, "worker", {running: 1, free: 1}, 60.0)
            assert found == Renewal(frozenset({running, free}), frozenset({free}), frozenset())
            assert finish(db, [success(held[running])]) == release(db, [Release(running, 1)]) == set()
            assert still_running(db, {running: 1, free: 1, queued: 0}) == {running, free}
            assert still_running(db, {running: 2}) == set()
        error = RowLocked("job_1")
        assert (error.code, error.message) == (
            "database_unavailable",
            Naming("row of job_1"),
        )

    def test_a_payload_without_its_key_goes_back_and_is_not_announced_at_once(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        db.seal = TurnedSeal("k1")
        sealed = accept_one()
        db.seal = TurnedSeal("k2")
        plain = accept_one()
        query("UPDATE jobs SET announced_at = NULL")
        with capture_logs() as logs:
            assert claim(db, "worker", QUEUE, [sealed, plain], 60.0).keys() == {plain}
        assert [(line["event"], line["job_id"]) for line in logs] == [("payload_not_opened", sealed)]
        (row,) = query("SELECT state, attempt, announced_at IS NULL AS waits FROM jobs WHERE id = :id", id=sealed)
        assert row == {"state": "queued", "attempt": 0, "waits": False}

    def test_a_claim_goes_on_where_its_flow_cannot_be_noted(
        self, db: Database, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flow, other = new_flow(make_job, CHAIN), new_flow(make_job, JOIN)
        accept(db, [flow, other])
        woken: list[str] = []
        start(db, other.steps[0].id, on_begun=woken.extend)
        assert woken == [other.answer_id]

        def away(*_args: object) -> list[str]:
            raise Unavailable("Postgres is away")

        part = replace(parent_part(), note_begun=away)
        monkeypatch.setattr(claims, "parent_part", lambda: part)
        with capture_logs() as logs:
            start(db, flow.steps[0].id, on_begun=woken.extend)
        assert woken == [other.answer_id]
        assert logs == [
            {"event": "step_not_noted", "log_level": "warning", "num_steps": 1, "error": "Postgres is away"}
        ]


class TestReleases:
    def test_a_suspect_stays_one_until_it_is_cleared(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        job_id = accept_one(max_attempts=9)
        seen = []
        for epoch, changes in enumerate(
            ({"crashed": True}, {}, {"charge": True}, {"cleared": True}, {"crashed": True, "charge": True}), 1
        ):
            start(db, job_id, suspects=bool(seen) and bool(seen[-1][2]))
            release(db, [Release(job_id, epoch, **changes)])
            (row,) = query("SELECT attempt, crashes, is_suspect FROM jobs")
            seen.append(tuple(row.values()))
        assert seen == [(0, 1, True), (0, 1, True), (1, 1, True), (1, 1, False), (2, 2, True)]

    def test_a_release_tells_its_time_and_may_count_as_announced(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        later, soon = accept_one(), accept_one()
        start(db, later, soon)
        first = Checkpoint(("a",), ((1,),), ((1, 0),), first_token_s=1.5)
        releases = [
            Release(later, 1, later=True, first_token_ms=12.5, charge=True, checkpoint=first),
            Release(soon, 1),
        ]
        assert release(db, releases) == {later, soon}
        assert timeline(db, tenant, later)[-1].detail == {"charged": True, "first_token_ms": 12.5}
        assert [get(db, tenant, job_id).announced_at is None for job_id in (later, soon)] == [False, True]
        assert start(db, later)[later].checkpoint == first
        release(db, [Release(later, 2)])
        found = start(db, later)[later].checkpoint
        assert found is not None
        assert (found, found.first_token_s) == (first, 1.5), "kept"
        release(db, [Release(later, 3, checkpoint=replace(first, first_token_s=2.5))])
        found = start(db, later)[later].checkpoint
        assert found is not None
        assert found.first_token_s == 2.5


class TestEnds:
    def test_of_two_ends_of_one_attempt_the_first_counts(
        self, db: Database, tenant: str, accept_one: AcceptOne
    ) -> None:
        job_id = accept_one()
        claimed = start(db, job_id)[job_id]
        told: list[object] = []
        ends = [success(claimed, output={"text": "first"}), success(claimed, output={"text": "second"})]
        assert finish(db, ends, told.append) == {job_id}
        assert get(db, tenant, job_id).output == {"text": "first"}
        assert told == [], "no step has ended"

    def test_the_event_has_the_code_and_the_time_of_the_first_token(
        self, db: Database, tenant: str, accept_one: AcceptOne
    ) -> None:
        good, bad = accept_one(), accept_one()
        held = start(db, good, bad)
        error = {"code": "numerical_error", "message": "NaN"}
        usage = {**USAGE, "attempt_first_token_ms": 7.5}
        finish(
            db,
            [success(held[good], usage=usage), success(held[bad], state=JobState.FAILED, output=None, error=error)],
        )
        events = [timeline(db, tenant, job_id)[-1] for job_id in (good, bad)]
        assert [(event.kind, event.epoch, event.detail) for event in events] == [
            ("succeeded", 1, {"first_token_ms": 7.5}),
            ("failed", 1, {"code": "numerical_error"}),
        ]


class TestSweeps:
    def test_a_lost_attempt_of_a_traced_job_is_told_with_its_times(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        traced, plain = accept_one(traceparent=TRACE), accept_one()
        start(db, traced)
        release(db, [Release(traced, 1)])
        query("UPDATE attempts SET ended_at = '2026-01-01 00:00:00+00'")
        start(db, traced, plain)
        query("UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'")
        result = sweep_leases(db)
        (row,) = query("SELECT * FROM attempts WHERE job_id = :id AND epoch = 2", id=traced)
        (before,) = query("SELECT ended_at FROM attempts WHERE job_id = :id AND epoch = 1", id=traced)
        lost = LostAttempt(
            job_id=traced,
            tenant_id=tenant,
            queue=QUEUE,
            model="tiny",
            epoch=2,
            attempt=1,
            worker="worker",
            created_at=get(db, tenant, traced).created_at,
            requeued_at=before["ended_at"],
            started_at=row["started_at"],
            ended_at=row["ended_at"],
            traceparent=TRACE,
        )
        assert result == SweepResult(requeued=2, failed=0, cancelled=0, traced=(lost,))
        assert result.num_jobs == 2
        assert row["error"] == {"code": "worker_lost", "message": Naming("lease")}

    @pytest.mark.parametrize(
        ("max_attempts", "crashes", "code"),
        [(1, 0, "max_attempts_exceeded"), (1, 2, "poison"), (9, 2, "poison")],
    )
    def test_a_job_that_is_given_up_says_why(
        self,
        db: Database,
        tenant: str,
        accept_one: AcceptOne,
        query: Query,
        max_attempts: int,
        crashes: int,
        code: str,
    ) -> None:
        job_id = accept_one(max_attempts=max_attempts)
        query("UPDATE jobs SET crashes = :n", n=crashes)
        start(db, job_id)
        query("UPDATE jobs SET lease_expires_at = now() - interval '1 s'")
        assert sweep_leases(db).ended == (job_id,)
        error = {"code": code, "message": Naming(), "retryable": False, "attempt": 1}
        assert get(db, tenant, job_id).error == error

    def test_an_expired_job_says_so_and_a_flow_waits_for_its_running_step(
        self, db: Database, tenant: str, make_job: MakeJob, accept_one: AcceptOne, query: Query
    ) -> None:
        alone, flow = accept_one(), new_flow(make_job, CHAIN)
        accept(db, [flow])
        first, second, _ = (step.id for step in flow.steps)
        claimed = start(db, first)[first]
        query(
            "UPDATE jobs SET deadline_at = now() - make_interval(secs => CASE id WHEN :id THEN 9 ELSE 2 END)", id=alone
        )
        assert expire_overdue(db, grace_s=60.0) == [alone], "the worker of a step has its grace"
        expected = {
            "code": "deadline_exceeded",
            "message": Naming("deadline"),
            "retryable": False,
            "attempt": 0,
        }
        assert get(db, tenant, alone).error == expected
        finish(db, [success(claimed)])
        assert expire_overdue(db, grace_s=60.0) == [flow.id]
        assert [get(db, tenant, job_id).state.value for job_id in (flow.id, first, second)] == [
            "expired",
            "succeeded",
            "expired",
        ]
        assert get(db, tenant, second).error == expected
        assert (get(db, tenant, flow.id).usage or {})["output_tokens"] == 2

    def test_a_flow_fails_with_its_step_of_a_rejected_version(
        self, db: Database, tenant: str, make_job: MakeJob, accept_one: AcceptOne
    ) -> None:
        reject(db, "tiny")
        flow, alone, other = new_flow(make_job, CHAIN), accept_one(), accept_one(queue="tiny@2")
        accept(db, [flow])
        assert set(fail_rejected(db)) == {flow.id, flow.steps[0].id, alone}
        error = {"code": "model_rejected", "message": Naming("tiny@1"), "retryable": False, "attempt": 0}
        assert get(db, tenant, alone).error == error
        assert get(db, tenant, flow.id).error == error | {"message": Naming("step first: ", "tiny@1"), "step": "first"}
        assert get(db, tenant, other).state is JobState.QUEUED

    def test_an_old_job_stays_while_a_later_response_needs_its_items(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        items = NewResponse(None, True, False, [{"text": "a"}], {})
        job_id = accept_one(response=items)
        accept_one(response=replace(items, previous_id="resp_" + job_id.removeprefix("job_"), goes_on=True))
        finish(db, [success(start(db, job_id)[job_id])])
        with db.begin() as connection:
            erase(connection, [job_id])
        query("UPDATE jobs SET completed_at = completed_at - interval '1 h'")
        assert purge(db, 60, 60, 10) == 0
        query("UPDATE responses SET input = '[]' WHERE job_id = :id", id=job_id)
        assert purge(db, 60, 60, 10) == 1

    def test_items_that_a_later_response_needs_are_not_read_to_keep_them(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        """They may have megabytes, and each turn of the sweeper looks at all of them."""
        # More than a page, also compressed.
        text = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=200_000))
        items = NewResponse(None, True, False, [{"text": text}], {})
        job_id = accept_one(response=items)
        accept_one(response=replace(items, previous_id="resp_" + job_id.removeprefix("job_"), goes_on=True))
        finish(db, [success(start(db, job_id)[job_id])])
        with db.begin() as connection:
            erase(connection, [job_id])
        query("UPDATE jobs SET completed_at = completed_at - interval '1 h'")

        def blocks() -> tuple[int, int]:
            """Blocks of the rows and of their long values that were looked at, as far as sessions have said so."""
            (row,) = query(
                "SELECT sum(heap_blks_read + heap_blks_hit) AS rows, sum(toast_blks_read + toast_blks_hit) AS values "
                "FROM pg_statio_all_tables WHERE relname = 'responses'"
            )
            return int(row["rows"]), int(row["values"])

        say = "SELECT pg_stat_force_next_flush()"
        query(say)
        before = blocks()
        assert purge(db, 60, 60, 10) == 0
        wait_for(lambda: bool(query(say)) and blocks()[0] > before[0], "its session has said what it looked at")
        assert blocks()[1] == before[1]


class TestCache:
    def ask(self, db: Database, make_job: MakeJob, **changes: Any) -> Accepted:
        (found,) = accept(db, [make_job(**{"lookup": CacheLookup("d", 3600.0), **changes})])
        assert isinstance(found, Accepted)
        return found

    def test_an_answer_that_is_erased_at_its_end_is_no_source(
        self, db: Database, tenant: str, make_job: MakeJob, query: Query
    ) -> None:
        first = self.ask(db, make_job, is_stored=False)
        assert (first.cache, first.announced) == (CacheResult.MISS, True)
        sharer = self.ask(db, make_job)
        assert (sharer.cache, sharer.announced) == (CacheResult.SHARED, False)
        finish(db, [success(start(db, first.job_id)[first.job_id], is_source=True)])
        assert get(db, tenant, sharer.job_id).state is JobState.SUCCEEDED
        assert self.ask(db, make_job).cache is CacheResult.MISS

    def test_a_source_that_shall_be_cancelled_or_is_of_a_worse_class_is_replaced(
        self, db: Database, tenant: str, make_job: MakeJob, query: Query
    ) -> None:
        first = self.ask(db, make_job)
        start(db, first.job_id)
        request_cancel(db, tenant, first.job_id)
        second = self.ask(db, make_job, service_class=ServiceClass.BATCH)
        assert second.cache is CacheResult.MISS
        third = self.ask(db, make_job)
        assert third.cache is CacheResult.MISS
        assert self.ask(db, make_job, service_class=ServiceClass.BATCH).cache is CacheResult.SHARED
        assert query("SELECT job_id, class_rank FROM cache_entries") == [{"job_id": third.job_id, "class_rank": 1}]

    def test_a_sharer_has_the_usage_of_a_cached_input(self, db: Database, tenant: str, make_job: MakeJob) -> None:
        source, sharer = self.ask(db, make_job), self.ask(db, make_job)
        usage = {**USAGE, "reasoning_tokens": 1, "cached_tokens": 2, "cost": 7.0}
        finish(db, [success(start(db, source.job_id)[source.job_id], usage=usage, is_source=True)])
        found = get(db, tenant, sharer.job_id).usage or {}
        waited_ms = found.pop("queue_ms")
        assert 0 <= waited_ms < 300_000
        assert found == {
            "input_tokens": 5,
            "output_tokens": 2,
            "reasoning_tokens": 1,
            "cached_tokens": 5,
            "first_token_ms": None,
            "compute_ms": 0.0,
        }

    def test_the_heir_is_the_first_in_the_order_and_the_others_wait_for_it(
        self, db: Database, tenant: str, make_job: MakeJob, query: Query
    ) -> None:
        source = self.ask(db, make_job).job_id
        late = self.ask(db, make_job, service_class=ServiceClass.BATCH, priority=0).job_id
        low, hurried, patient = (
            self.ask(db, make_job, priority=priority, deadline_s=deadline_s).job_id
            for priority, deadline_s in ((9, 60.0), (5, 60.0), (5, 3600.0))
        )
        start(db, source)
        request_cancel(db, tenant, source)
        finish(db, [Finish(source, 1, JobState.CANCELLED, None, None, None, is_source=True)])
        swept = sharers.sweep(db, 10)
        assert (swept.answered, swept.promoted) == ((), (hurried,))
        heir = get(db, tenant, hurried)
        assert (heir.cache, heir.cache_source, heir.queue, heir.epoch) == ("miss", None, QUEUE, 1)
        assert {get(db, tenant, one).cache_source for one in (late, low, patient)} == {hurried}
        assert query("SELECT job_id, class_rank FROM cache_entries") == [{"job_id": hurried, "class_rank": 1}]
        assert sharers.sweep(db, 10) == sharers.SharersSwept()

    def test_each_tenant_keeps_so_many_entries_and_no_old_ones(
        self, db: Database, other_tenant: str, make_job: MakeJob, query: Query
    ) -> None:
        mine = [self.ask(db, make_job, lookup=CacheLookup(f"d{n}", 60.0)).job_id for n in range(3)]
        theirs = self.ask(db, make_job, tenant_id=other_tenant).job_id
        query("UPDATE cache_entries SET created_at = now() - interval '1 h' WHERE job_id = :id", id=mine[1])
        assert response_cache.purge(db, 60.0, 2, 10) == 1
        left = {row["job_id"] for row in query("SELECT job_id FROM cache_entries")}
        assert left == {mine[0], mine[2], theirs}
        assert response_cache.purge(db, 60.0, 0, 2) == 2
        assert response_cache.purge(db, 60.0, 0, 2) == 1

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.db.group_commit import GroupCommit, isolated
from headrace.store.errors import Conflict, IdempotencyKeyReused, InvalidRequest, NotFound
from headrace.store.ids import first_id, new_id
from headrace.store.jobs.claims import Finish, Release, claim, finish, release
from headrace.store.jobs.jobs import (
    Accepted,
    Idempotency,
    JobList,
    NewJob,
    accept,
    find_duplicate,
    get,
    get_each,
    get_many,
    leave,
    list_jobs,
    request_cancel,
    stored_deltas,
    timeline,
)
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.registry.prompt_templates import Kind, create
from headrace.store.registry.prompt_templates import get as read_version
from headrace.store.scheduling.dispatch_queries import take_waiting
from headrace.store.schema.job_states import JobState
from headrace.store.seal import PLAIN, Seal
from headrace.store.settings import Settings
from tests.roles import as_api
from tests.sealing import TurnedSeal
from tests.store.making import QUEUE, AcceptOne, MakeJob, Query


def key(name: str, fingerprint: str = "same body") -> Idempotency:
    return Idempotency("POST /v1/jobs", name, fingerprint)


def start(db: Database, job_id: str) -> int:
    return claim(db, "worker", QUEUE, [job_id], 60)[job_id].epoch


def end(db: Database, job_id: str, state: JobState = JobState.SUCCEEDED, **parts: Any) -> None:
    result = Finish(job_id, start(db, job_id), state, None, None, None, ())
    assert finish(db, [replace(result, **parts)]) == {job_id}


def rows_read(db: Database, look: Callable[[], object]) -> int:
    """Return how many rows of the jobs' table a call reads, by whatever plan; ``db`` has one connection."""

    def counted() -> int:
        with db.autocommit() as connection:
            connection.execute(text("SELECT pg_stat_force_next_flush()"))
            sql = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'jobs'"
            return int(connection.execute(text(sql)).scalar_one())

    before = counted()
    look()
    return counted() - before


class TestAccept:
    def test_a_job_comes_back_as_it_was_given(self, db: Database, tenant: str, make_job: MakeJob) -> None:
        job = make_job(
            service_class=ServiceClass.BATCH,
            priority=9,
            payload={"input": {"prompt": "Grüße 🎡"}, "sampling": {"seed": 2**63 - 1, "top_p": 0.1}},
            metadata={"k": "v"},
            webhook={"url": "https://example.com/hook"},
            max_attempts=7,
            deadline_s=90.0,
        )
        assert accept(db, [job]) == [Accepted(job.id, replayed=False, announced=True)]
        stored = get(db, tenant, job.id)
        for name in ("id", "tenant_id", "task", "model", "model_version", "queue", "priority", "payload", "metadata"):
            assert getattr(stored, name) == getattr(job, name)
        assert (stored.webhook, stored.max_attempts, stored.input_tokens) == (job.webhook, 7, 5)
        assert stored.service_class is ServiceClass.BATCH
        assert (stored.state, stored.epoch, stored.attempt, stored.num_deltas) == (JobState.QUEUED, 0, 0, 0)
        assert stored.deadline_at is not None
        assert (stored.deadline_at - stored.created_at).total_seconds() == 90.0
        assert (stored.owner, stored.started_at, stored.completed_at, stored.output) == (None, None, None, None)
        assert [event.kind for event in timeline(db, tenant, job.id)] == ["queued"]

    def test_outcomes_stand_in_the_order_of_the_jobs(self, db: Database, make_job: MakeJob) -> None:
        jobs = [make_job() for _ in range(20)]
        shuffled = jobs[::2] + jobs[1::2][::-1]
        assert [outcome.job_id for outcome in accepted(db, shuffled)] == [job.id for job in shuffled]

    def test_an_empty_wave_is_nothing(self, db: Database) -> None:
        assert accept(db, []) == []

    def test_a_known_key_replays_its_job_and_stores_nothing(
        self, db: Database, make_job: MakeJob, query: Query
    ) -> None:
        first, again = make_job(idempotency=key("k")), make_job(idempotency=key("k"))
        accept(db, [first])
        assert accept(db, [again]) == [Accepted(first.id, replayed=True, announced=False)]
        assert query("SELECT id FROM jobs") == [{"id": first.id}]

    def test_a_key_is_replayed_however_often(self, db: Database, tenant: str, make_job: MakeJob, query: Query) -> None:
        first, again = make_job(idempotency=key("k"), fingerprint="f"), make_job(idempotency=key("k"))
        accept(db, [first])
        query("UPDATE jobs SET callers = 32766 RETURNING id")
        for _ in range(3):
            assert accept(db, [again]) == [Accepted(first.id, replayed=True, announced=False)]
            assert find_duplicate(db, tenant, "f", 60) == first.id
        # So many are not counted any more, so nobody is known to be the last one to leave.
        assert leave(db, tenant, first.id) is None
        assert get(db, tenant, first.id).state is JobState.QUEUED

    def test_a_key_with_another_body_is_refused_in_its_place_alone(self, db: Database, make_job: MakeJob) -> None:
        accept(db, [make_job(idempotency=key("k"))])
        jobs = [make_job(), make_job(idempotency=key("k", "another body")), make_job()]
        outcomes = accept(db, jobs)
        assert isinstance(outcomes[1], IdempotencyKeyReused)
        assert [outcomes[i] for i in (0, 2)] == [Accepted(jobs[i].id, replayed=False, announced=True) for i in (0, 2)]

    def test_a_key_twice_in_one_wave_is_one_job(self, db: Database, make_job: MakeJob) -> None:
        first, again, other = (make_job(idempotency=key("k", body)) for body in ("a", "a", "b"))
        outcomes = accept(db, [first, again, other])
        assert outcomes[:2] == [
            Accepted(first.id, replayed=False, announced=True),
            Accepted(first.id, replayed=True, announced=False),
        ]
        assert isinstance(outcomes[2], IdempotencyKeyReused)

    def test_a_key_is_one_tenants_and_one_routes_own(
        self, db: Database, make_job: MakeJob, other_tenant: str, query: Query
    ) -> None:
        mine = make_job(idempotency=key("k"))
        theirs = make_job(idempotency=key("k", "other"), tenant_id=other_tenant)
        elsewhere = make_job(idempotency=Idempotency("POST /v1/chat/completions", "k", "other"))
        assert not any(outcome.replayed for outcome in accepted(db, [mine, theirs, elsewhere]))
        assert query("SELECT count(*) AS n FROM jobs") == [{"n": 3}]

    def test_one_key_from_32_racing_callers_of_4_processes_is_one_job(
        self, settings: Settings, make_job: MakeJob, query: Query
    ) -> None:
        replicas = [Database(settings.database_url, application_name=f"api-{n}") for n in range(4)]
        waves = [GroupCommit[NewJob, Accepted](isolated(lambda jobs, db=db: accept(db, jobs))) for db in replicas]
        barrier = Barrier(32)

        def post(caller: int) -> list[Accepted]:
            barrier.wait(20)
            # Each in an order of its own, so that transactions meet at different keys first.
            order = [f"key-{(caller * 7 + step) % 10}" for step in range(10)]
            return [waves[caller % 4].join(make_job(idempotency=key(name), metadata={"key": name})) for name in order]

        with ThreadPoolExecutor(32) as pool:
            outcomes = [outcome for result in pool.map(post, range(32), timeout=60) for outcome in result]
        for db in replicas:
            db.close()
        stored = query("SELECT id, metadata ->> 'key' AS key FROM jobs ORDER BY key")
        assert [row["key"] for row in stored] == sorted(f"key-{n}" for n in range(10))
        assert sum(not outcome.replayed for outcome in outcomes) == 10
        assert {outcome.job_id for outcome in outcomes} == {row["id"] for row in stored}
        assert query("SELECT count(*) AS n FROM job_events") == [{"n": 10}]

    def test_a_value_that_cannot_be_stored_takes_its_whole_batch_back(
        self, db: Database, make_job: MakeJob, query: Query
    ) -> None:
        with pytest.raises(InvalidRequest, match=r"U\+0000"):
            accept(db, [make_job(), make_job(payload={"input": {"prompt": "a\0b"}}, idempotency=key("k"))])
        assert query("SELECT id FROM jobs UNION ALL SELECT key FROM idempotency_keys") == []

    def test_in_a_wave_such_a_job_fails_alone(self, db: Database, make_job: MakeJob, query: Query) -> None:
        wave = GroupCommit[NewJob, Accepted](isolated(lambda jobs: accept(db, jobs)))
        good, bad = make_job(), make_job(payload={"text": "\ud800"})
        barrier = Barrier(2)

        def join(job: NewJob) -> Accepted:
            barrier.wait(10)
            return wave.join(job)

        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(join, job) for job in (good, bad)]
            assert futures[0].result(10).job_id == good.id
            with pytest.raises(InvalidRequest, match="Unicode"):
                futures[1].result(10)
        assert query("SELECT id FROM jobs") == [{"id": good.id}]


class TestAnnouncing:
    def test_who_waits_in_a_worse_class_is_not_waited_for(self, db: Database, make_job: MakeJob) -> None:
        accept(db, [make_job(announce=False, service_class=ServiceClass.BATCH)])
        outcomes = accepted(db, [make_job(), make_job(service_class=ServiceClass.BATCH)])
        assert [outcome.announced for outcome in outcomes] == [True, False]
        accept(db, [make_job(announce=False, service_class=ServiceClass.INTERACTIVE)])
        assert [outcome.announced for outcome in accepted(db, [make_job()])] == [False]

    def test_a_job_is_announced_while_nobody_waits(self, db: Database, make_job: MakeJob) -> None:
        assert [outcome.announced for outcome in accepted(db, [make_job(), make_job()])] == [True, True]
        assert [outcome.announced for outcome in accepted(db, [make_job()])] == [True]

    def test_a_job_waits_if_the_window_is_full(self, db: Database, tenant: str, make_job: MakeJob) -> None:
        (outcome,) = accepted(db, [make_job(announce=False)])
        assert not outcome.announced
        assert get(db, tenant, outcome.job_id).announced_at is None

    def test_nobody_overtakes_one_who_waits_in_the_same_queue(self, db: Database, make_job: MakeJob) -> None:
        accept(db, [make_job(announce=False)])
        late, elsewhere = accepted(db, [make_job(), make_job(queue="other@1")])
        assert (late.announced, elsewhere.announced) == (False, True)

    def test_nobody_overtakes_one_who_waits_in_the_same_wave(self, db: Database, make_job: MakeJob) -> None:
        outcomes = accepted(db, [make_job(), make_job(announce=False), make_job(queue="other@1")])
        assert [outcome.announced for outcome in outcomes] == [False, False, True]

    def test_a_replay_does_not_hold_the_others_back(self, db: Database, make_job: MakeJob) -> None:
        accept(db, [make_job(idempotency=key("k"))])
        replay, fresh = accepted(db, [make_job(idempotency=key("k"), announce=False), make_job()])
        assert (replay.replayed, fresh.announced) == (True, True)

    def test_waiting_ends_when_the_dispatcher_took_everybody(self, db: Database, make_job: MakeJob) -> None:
        accept(db, [make_job(announce=False)])
        take_waiting(db, QUEUE, 10)
        assert [outcome.announced for outcome in accepted(db, [make_job()])] == [True]


class TestReading:
    def test_another_tenant_sees_nothing(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne
    ) -> None:
        job_id = accept_one()
        end(db, job_id, deltas=["hello"])
        with pytest.raises(NotFound):
            get(db, other_tenant, job_id)
        with pytest.raises(NotFound):
            timeline(db, other_tenant, job_id)
        with pytest.raises(NotFound):
            request_cancel(db, other_tenant, job_id)
        assert stored_deltas(db, other_tenant, job_id) is None
        assert get_many(db, other_tenant, [job_id]) == []
        assert list_jobs(db, other_tenant) == []
        assert get(db, tenant, job_id).state is JobState.SUCCEEDED

    def test_many_come_in_the_order_asked_without_the_unknown(
        self, db: Database, tenant: str, accept_one: AcceptOne
    ) -> None:
        ids = [accept_one() for _ in range(3)]
        asked = [ids[2], "job_unknown", ids[0]]
        assert [job.id for job in get_many(db, tenant, asked)] == [ids[2], ids[0]]
        assert get_many(db, tenant, []) == []

    def test_a_plan_of_when_there_were_few_jobs_reads_no_more_than_is_asked_for(
        self, settings: Settings, db: Database, tenant: str, make_job: MakeJob, query: Query
    ) -> None:
        jobs = [make_job() for _ in range(1024)]
        query("ALTER TABLE jobs SET (autovacuum_enabled = off)")
        with closing(Database(as_api(settings).database_url, pool_size=1, application_name="api")) as api:
            accept(db, jobs[:30])
            with api.autocommit() as connection:
                # A table of a few pages is read whole, whatever the statement; how many it has, earlier tests decide.
                connection.execute(text("SET enable_seqscan = off"))
                connection.execute(text("SET plan_cache_mode = force_generic_plan"))
            for _ in range(8):
                assert len(get_each(api, [(tenant, job.id) for job in jobs[:4]])) == 4
            for start in range(30, len(jobs), 256):
                accept(db, jobs[start : start + 256])
            num_read = rows_read(api, lambda: get_each(api, [(tenant, job.id) for job in jobs[-16:]]))
        query("ALTER TABLE jobs RESET (autovacuum_enabled)")
        assert num_read <= 100, "of 16 jobs among 1024"

    @pytest.mark.parametrize("seal", [PLAIN, TurnedSeal("k1")], ids=["plain", "sealed"])
    def test_objects_of_a_caller_keep_the_order_of_their_keys(
        self, db: Database, tenant: str, accept_one: AcceptOne, seal: Seal
    ) -> None:
        db.seal = seal
        sent = {"temperature": 21, "at": {"zone": "Z", "day": 1}}
        given = [
            {"input": {"record": sent, "records": [[sent], {"a": 1}]}, "sampling": {"grammar": {"schema": sent}}},
            {"input": {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"about": sent}}},
            {"steps": [{"name": "a", "input": {"template": {"id": "p", "variables": {"weather": sent}}}}]},
        ]
        for payload in given:
            assert json.dumps(get(db, tenant, accept_one(payload=payload)).payload) == json.dumps(payload)
        for number, body in enumerate(given):
            made = create(db, tenant, name=f"p{number}", template=body, actor="t", kind=Kind.PIPELINE)
            assert json.dumps(read_version(db, tenant, made.id, kind=Kind.PIPELINE).template) == json.dumps(body)

    def test_pages_follow_each_other_in_both_directions(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        ids = [accept_one() for _ in range(5)]

        def page(after: str | None, *, descending: bool) -> list[str]:
            return [job.id for job in list_jobs(db, tenant, limit=2, after=after, descending=descending)]

        assert page(None, descending=True) == [ids[4], ids[3]]
        assert page(ids[3], descending=True) == [ids[2], ids[1]]
        assert page(ids[1], descending=True) == [ids[0]]
        assert page(ids[2], descending=False) == [ids[3], ids[4]]

    def test_filters_hold_together(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        plain = accept_one()
        tagged = accept_one(metadata={"run": "7", "by": "me"})
        other = accept_one(model="big", task="embed", metadata={"run": "7"})
        end(db, plain)

        def found(**filters: Any) -> set[str]:
            return {job.id for job in list_jobs(db, tenant, **filters)}

        assert found(state=JobState.QUEUED) == {tagged, other}
        assert found(model="big") == found(task="embed") == {other}
        assert found(metadata={"run": "7"}) == {tagged, other}
        assert found(metadata={"run": "7", "by": "me"}) == {tagged}
        assert found(state=JobState.SUCCEEDED, metadata={"run": "7"}) == set()

    def test_a_list_that_matches_little_looks_at_some_jobs_and_says_where_to_go_on(
        self,
        settings: Settings,
        db: Database,
        tenant: str,
        other_tenant: str,
        accept_one: AcceptOne,
        query: Query,
    ) -> None:
        wanted = accept_one(model="rare", metadata={"run": "7"})
        copy = (
            "INSERT INTO jobs SELECT (jsonb_populate_record(jobs, jsonb_build_object('id', :prefix || number))).*"
            " FROM jobs, generate_series(CAST(:first AS int), CAST(:first AS int) + 3999) AS number WHERE id = :id"
        )
        # Newer jobs of the tenant, and still newer ones of another tenant.
        for prefix, copied in (("job_a", accept_one()), ("job_b", accept_one(tenant_id=other_tenant))):
            for first in (10_000, 14_000, 18_000):
                query(copy, prefix=prefix, first=first, id=copied)
        with db.autocommit() as connection:
            connection.execute(text("VACUUM ANALYZE jobs"))
        with closing(Database(as_api(settings).database_url, pool_size=1, application_name="api")) as api:
            pages: list[JobList] = []

            def look(**filters: Any) -> None:
                pages.append(list_jobs(api, tenant, **filters))

            assert rows_read(api, look) <= 10_000, "of an unfiltered list, which has newer jobs of another tenant"
            for filters in ({"model": "rare"}, {"metadata": {"run": "7"}}):
                pages.clear()
                while not pages or pages[-1].read_to is not None:
                    after = pages[-1].read_to if pages else None
                    assert rows_read(api, partial(look, **filters, after=after)) <= 10_000
                assert [job.id for page in pages for job in page] == [wanted]

    def test_a_time_bounds_what_is_looked_at_by_the_ids(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        now = datetime.now(UTC)

        def made(hours_ago: float) -> str:
            """A job accepted now by a process whose clock is behind."""
            return accept_one(id=first_id("job", now - timedelta(hours=hours_ago)) + "7" + "0" * 19)

        # Clocks may be apart, but not by more than is looked at.
        _, late = made(1.5), made(0.5)
        for descending in (True, False):
            since = now - timedelta(minutes=1)
            assert [job.id for job in list_jobs(db, tenant, created_after=since, descending=descending)] == [late]
        assert list_jobs(db, tenant, created_after=now + timedelta(minutes=1)) == []
        assert list_jobs(db, tenant, created_after=get(db, tenant, late).created_at) == [], "not one of that moment"
        assert len(list_jobs(db, tenant, created_after=datetime.fromtimestamp(0, UTC))) == 2
        assert first_id("job", now - timedelta(seconds=1)) < new_id("job") < first_id("job", now + timedelta(hours=1))

    def test_the_stream_is_kept_with_its_epoch(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        job_id = accept_one()
        assert stored_deltas(db, tenant, job_id) is None
        release(db, [Release(job_id, start(db, job_id))])
        end(db, job_id, deltas=["Hel", "lo"], output={"text": "Hello", "finish_reason": "stop"})
        stream = stored_deltas(db, tenant, job_id)
        assert stream is not None
        assert (stream.epoch, stream.deltas) == (2, ["Hel", "lo"])
        assert get(db, tenant, job_id).num_deltas == 2

    def test_the_timeline_tells_the_whole_story_in_order(
        self, db: Database, tenant: str, accept_one: AcceptOne
    ) -> None:
        job_id = accept_one()
        release(db, [Release(job_id, start(db, job_id))])
        end(db, job_id, JobState.FAILED, error={"code": "out_of_memory", "message": "no room"})
        events = timeline(db, tenant, job_id)
        assert [(event.kind, event.epoch) for event in events] == [
            ("queued", 0),
            ("started", 1),
            ("released", 1),
            ("started", 2),
            ("failed", 2),
        ]
        assert events[1].detail == {"attempt": 1, "worker": "worker"}
        assert events[4].detail == {"code": "out_of_memory"}
        assert [event.at for event in events] == sorted(event.at for event in events)


class TestCancelling:
    def test_a_queued_job_is_cancelled_at_once(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one(webhook={"url": "https://example.com/hook"})
        job = request_cancel(db, tenant, job_id)
        assert job.state is JobState.CANCELLED
        assert job.completed_at == job.cancel_requested_at
        assert claim(db, "worker", QUEUE, [job_id], 60) == {}
        assert query("SELECT state, epoch FROM job_terminal") == [{"state": "cancelled", "epoch": 0}]
        assert query("SELECT type, url FROM webhook_deliveries") == [
            {"type": "job.cancelled", "url": "https://example.com/hook"}
        ]
        assert [event.kind for event in timeline(db, tenant, job_id)] == ["queued", "cancel_requested", "cancelled"]

    def test_a_running_job_is_asked_and_goes_on(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        job_id = accept_one()
        epoch = start(db, job_id)
        first = request_cancel(db, tenant, job_id)
        again = request_cancel(db, tenant, job_id)
        assert first.state is again.state is JobState.RUNNING
        assert first.cancel_requested_at == again.cancel_requested_at is not None
        assert finish(db, [Finish(job_id, epoch, JobState.CANCELLED, {"text": "Hel"}, None, None, ["Hel"])]) == {job_id}
        assert get(db, tenant, job_id).output == {"text": "Hel"}

    @pytest.mark.parametrize("state", [state for state in JobState if state.is_terminal])
    def test_an_ended_job_cannot_be_cancelled(
        self, db: Database, tenant: str, accept_one: AcceptOne, state: JobState
    ) -> None:
        job_id = accept_one()
        end(db, job_id, state)
        with pytest.raises(Conflict, match=state) as refused:
            request_cancel(db, tenant, job_id)
        assert refused.value.code == "job_not_cancellable"
        assert get(db, tenant, job_id).cancel_requested_at is None


def accepted(db: Database, jobs: list[NewJob]) -> list[Accepted]:
    outcomes = accept(db, jobs)
    assert all(isinstance(outcome, Accepted) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Accepted)]

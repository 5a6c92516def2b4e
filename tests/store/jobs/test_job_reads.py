"""What the API reads of jobs: duplicates, callers, steps, purged jobs, sealed outputs."""

from typing import Any

import pytest

from headrace.features.response_cache.entries import CacheLookup
from headrace.features.responses.new_response import NewResponse
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.errors import CannotOpen, Conflict, Gone, HeadraceError, NotFound
from headrace.store.jobs.acceptance import Fallback, is_known
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.jobs.dead_letters import get_dead_letter, list_dead_letters, note_replay
from headrace.store.jobs.erasure import erase
from headrace.store.jobs.flow_turns import TurnStep, number_of, read_steps
from headrace.store.jobs.flow_values import read_outputs
from headrace.store.jobs.jobs import (
    Accepted,
    Idempotency,
    Job,
    accept,
    find_duplicate,
    get,
    get_each,
    get_many,
    leave,
    list_jobs,
    list_steps,
    request_cancel,
    step_events,
    stored_deltas,
    timeline,
)
from headrace.store.jobs.sweeps import purge
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import LogprobRow
from tests.refusals import Naming
from tests.sealing import TurnedSeal
from tests.store.making import CHAIN, JOIN, QUEUE, AcceptOne, MakeJob, Needs, Query, new_flow


def key(name: str, fingerprint: str = "f", *also: str) -> Idempotency:
    return Idempotency("POST /v1/jobs", name, fingerprint, also)


def end(db: Database, job_id: str, state: JobState = JobState.SUCCEEDED, **parts: Any) -> None:
    claimed = claim(db, "worker", QUEUE, [job_id], 60)[job_id]
    values: dict[str, Any] = {"output": {"text": "Hello"}, "error": None, "usage": None, **parts}
    values |= {"tenant_id": claimed.tenant_id, "parent_id": claimed.parent_id}
    assert finish(db, [Finish(job_id, claimed.epoch, state, **values)]) == {job_id}


def callers(query: Query) -> dict[str, int]:
    return {row["id"]: row["callers"] for row in query("SELECT id, callers FROM jobs")}


class TestAccepting:
    def test_a_key_keeps_its_newest_fingerprint_and_counts_its_callers(
        self, db: Database, make_job: MakeJob, query: Query
    ) -> None:
        first, other = make_job(idempotency=key("k", "new", "old")), make_job(idempotency=key("other"))
        accept(db, [first, other])
        assert query("SELECT fingerprint FROM idempotency_keys WHERE key = 'k'") == [{"fingerprint": "new"}]
        for same in (key("k", "new"), key("k", "newer", "new")):
            assert accept(db, [make_job(idempotency=same)]) == [Accepted(first.id, replayed=True, announced=False)]
        (refused,) = accept(db, [make_job(idempotency=key("k", "old", "older"))])
        assert isinstance(refused, HeadraceError)
        assert (refused.code, refused.param) == ("idempotency_key_reused", "Idempotency-Key")
        assert callers(query) == {first.id: 3, other.id: 1}

    def test_a_key_is_known_to_its_tenant_and_on_its_route(
        self, db: Database, tenant: str, other_tenant: str, make_job: MakeJob
    ) -> None:
        accept(db, [make_job(idempotency=key("k"))])
        assert is_known(db, tenant, key("k", "another body"))
        assert not is_known(db, other_tenant, key("k"))
        assert not is_known(db, tenant, key("l"))
        assert not is_known(db, tenant, Idempotency("POST /v1/batches", "k", "f"))

    def test_a_refused_job_leaves_no_entry_in_the_cache(self, db: Database, make_job: MakeJob, query: Query) -> None:
        jobs = [
            make_job(idempotency=key("k", body), lookup=CacheLookup(digest, 60.0))
            for body, digest in (("a", "d1"), ("b", "d2"))
        ]
        accepted, refused = accept(db, jobs)
        assert isinstance(accepted, Accepted)
        assert isinstance(refused, HeadraceError)
        assert query("SELECT digest, job_id FROM cache_entries") == [{"digest": "d1", "job_id": jobs[0].id}]

    def test_a_suspect_and_a_worse_class_hold_no_job_back(
        self, db: Database, make_job: MakeJob, accept_one: AcceptOne, query: Query
    ) -> None:
        suspect = accept_one(announce=False)
        query("UPDATE jobs SET is_suspect = true WHERE id = :id", id=suspect)
        batch, standard = make_job(announce=False, service_class=ServiceClass.BATCH), make_job()
        outcomes = accept(db, [batch, standard])
        assert [isinstance(one, Accepted) and one.hinted for one in outcomes] == [frozenset(), {standard.id}]

    def test_the_contents_of_a_fallback_are_sealed(self, db: Database, make_job: MakeJob, query: Query) -> None:
        db.seal = TurnedSeal("k1")
        accept(db, [make_job(fallback=Fallback({"input": {"prompt": "plain"}}, 3, 7))])
        (row,) = query("SELECT payload::text AS payload, input_tokens, cost_tokens FROM job_fallbacks")
        assert "plain" not in row["payload"]
        assert (row["input_tokens"], row["cost_tokens"]) == (3, 7)

    def test_what_a_job_is_decides_what_becomes_of_it(self, make_job: MakeJob) -> None:
        stored, unstored = (NewResponse(None, is_stored, False, [], {}) for is_stored in (True, False))
        jobs = [make_job(is_stored=one) for one in (None, True, False)]
        jobs += [make_job(response=one) for one in (stored, unstored)]
        assert [job.is_stored_chat for job in jobs] == [False, True, False, False, False]
        assert [job.purge_when_ended for job in jobs] == [False, False, True, False, True]
        flow = new_flow(make_job, JOIN)
        assert (flow.queued_tokens, jobs[0].queued_tokens, flow.price_queue) == (39, 13, "tiny@1")


class TestDuplicates:
    def test_the_newest_of_the_tenant_within_the_time_is_found_and_has_one_more_caller(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        old, first, second = (accept_one(fingerprint="f") for _ in range(3))
        foreign = accept_one(fingerprint="f", tenant_id=other_tenant)
        other = accept_one(fingerprint="g")
        query("UPDATE jobs SET created_at = created_at - interval '1 h' WHERE id = :id", id=old)
        assert find_duplicate(db, tenant, ["f"], 600.0) == second
        assert find_duplicate(db, tenant, ["f", "g"], 600.0) == other
        for job_id in (second, other):
            request_cancel(db, tenant, job_id)
        assert find_duplicate(db, tenant, ["f", "g"], 600.0) == first
        request_cancel(db, tenant, first)
        assert find_duplicate(db, tenant, ["f", "g"], 600.0) is None
        assert find_duplicate(db, tenant, ["f"], 7200.0) == old
        assert find_duplicate(db, tenant, ["h"], 7200.0) is None
        assert callers(query) == {old: 2, first: 2, second: 2, foreign: 1, other: 2}

    @pytest.mark.parametrize("state", [JobState.FAILED, JobState.EXPIRED])
    def test_a_failure_is_no_answer_to_a_retry(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query, state: JobState
    ) -> None:
        good, bad = (accept_one(fingerprint="f") for _ in range(2))
        query("UPDATE jobs SET state = :state, completed_at = now() WHERE id = :id", id=bad, state=state)
        assert find_duplicate(db, tenant, ["f"], 600.0) == good
        query("UPDATE jobs SET state = :state, completed_at = now() WHERE id = :id", id=good, state=state)
        assert find_duplicate(db, tenant, ["f"], 600.0) is None

    def test_the_last_caller_cancels_and_the_most_are_not_counted(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        shared, crowded, running = accept_one(fingerprint="f"), accept_one(), accept_one()
        find_duplicate(db, tenant, ["f"], 60.0)
        query("UPDATE jobs SET callers = 32767 WHERE id = :id", id=crowded)
        claim(db, "worker", QUEUE, [running], 60)
        assert (leave(db, tenant, shared), leave(db, tenant, crowded)) == (None, None)
        assert callers(query) == {shared: 1, crowded: 32767, running: 1}
        for _ in range(2):
            left = leave(db, tenant, running)
            assert left is not None
            assert (left.state, left.cancel_requested_at is not None) == (JobState.RUNNING, True)
        with pytest.raises(NotFound):
            leave(db, other_tenant, shared)
        left = leave(db, tenant, shared)
        assert left is not None
        assert left.state is JobState.CANCELLED
        with pytest.raises(Conflict):
            leave(db, tenant, shared)


class TestCancelling:
    def test_the_first_request_is_kept_and_an_ended_step_says_so(
        self, db: Database, tenant: str, make_job: MakeJob, accept_one: AcceptOne
    ) -> None:
        running = accept_one()
        claim(db, "worker", QUEUE, [running], 60)
        times = {request_cancel(db, tenant, running).cancel_requested_at for _ in range(2)}
        assert len(times) == 1
        flow = new_flow(make_job, CHAIN)
        accept(db, [flow])
        first, second, _ = (step.id for step in flow.steps)
        end(db, first)
        for step_id, why in (
            (first, Naming(f"{first} is succeeded")),
            (second, Naming(second, f"step of {flow.id}")),
        ):
            with pytest.raises(Conflict) as caught:
                request_cancel(db, tenant, step_id)
            assert (caught.value.message, caught.value.code) == (why, "job_not_cancellable")


class TestPurged:
    def test_a_tenant_is_told_of_its_own_jobs_only_that_they_are_gone(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        emptied, deleted = accept_one(), accept_one()
        usage = {"input_tokens": 1, "output_tokens": 1, "queue_ms": 1.0, "compute_ms": 1.0}
        for job_id in (emptied, deleted):
            end(db, job_id, usage=usage)
        with db.begin() as connection:
            erase(connection, [emptied, deleted])
        query("UPDATE jobs SET completed_at = now() - interval '1 h' WHERE id = :id", id=deleted)
        assert purge(db, 60, 60, 10) == 1
        asked = [(owner, job_id) for owner in (tenant, other_tenant) for job_id in (emptied, deleted, "job_x")]
        found = {pair: (type(error), getattr(error, "message", None)) for pair, error in get_each(db, asked).items()}
        gone = {(tenant, job_id): (Gone, Naming(job_id)) for job_id in (emptied, deleted)}
        assert found == {pair: (NotFound, f"no job {pair[1]}") for pair in asked} | gone
        assert get_each(db, []) == {}

    def test_an_output_that_cannot_be_opened_fails_a_list_of_ids_and_no_other_tenant(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne
    ) -> None:
        db.seal = TurnedSeal("k1")
        ours, theirs = accept_one(), accept_one(tenant_id=other_tenant)
        db.seal = TurnedSeal("k2")
        newer = accept_one()
        asked = [(tenant, ours), (other_tenant, theirs), (tenant, newer)]
        found = get_each(db, asked)
        assert [type(found[pair]) for pair in asked] == [CannotOpen, CannotOpen, Job]
        assert [job.id for job in get_many(db, tenant, [newer, "job_x", theirs])] == [newer]
        with pytest.raises(CannotOpen):
            get_many(db, tenant, [newer, ours])


class TestSteps:
    def test_steps_are_listed_in_their_order_and_only_with_their_job(
        self, db: Database, tenant: str, other_tenant: str, make_job: MakeJob, accept_one: AcceptOne
    ) -> None:
        flow, alone = new_flow(make_job, CHAIN), accept_one()
        accept(db, [flow])
        assert [step.step for step in list_steps(db, tenant, flow.id)] == list(CHAIN)
        assert list_steps(db, other_tenant, flow.id) == list_steps(db, tenant, alone) == []
        assert [job.id for job in list_jobs(db, tenant)] == [alone, flow.id]
        assert {job.step for job in list_jobs(db, tenant, parent_id=flow.id)} == set(CHAIN)
        assert len(list_jobs(db, tenant, with_steps=True)) == 5

    def test_their_events_come_in_order_without_those_that_a_reader_has(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one()
        kinds = ("step_started", "approval_requested", "approval_decided", "started", "step_finished")
        for number, kind in enumerate(kinds):
            query(
                "INSERT INTO job_events (job_id, kind, epoch, detail) VALUES (:id, :kind, 0, jsonb_build_object('n', "
                "CAST(:n AS int)))",
                id=job_id,
                kind=kind,
                n=number,
            )
        found = step_events(db, tenant, job_id, after=0)
        assert [(event.kind, event.detail["n"]) for event in found] == [
            ("step_started", 0),
            ("approval_requested", 1),
            ("approval_decided", 2),
            ("step_finished", 4),
        ]
        assert step_events(db, tenant, job_id, after=3) == found[3:]
        assert step_events(db, other_tenant, job_id, after=0) == []
        assert [event.kind for event in timeline(db, tenant, job_id)] == ["queued", *kinds]
        with pytest.raises(NotFound, match=f"no job {job_id}"):
            timeline(db, other_tenant, job_id)

    def test_outputs_of_steps_that_succeeded_are_read_by_name(
        self, db: Database, tenant: str, other_tenant: str, make_job: MakeJob
    ) -> None:
        db.seal = TurnedSeal("k1")
        flow, other = new_flow(make_job, JOIN), new_flow(make_job, JOIN)
        accept(db, [flow, other])
        end(db, flow.steps[0].id, output={"text": "ours"})
        end(db, other.steps[0].id, output={"text": "theirs"})
        names = ["left", "right", "both"]
        assert read_outputs(db, tenant, flow.id, names) == {"left": {"task": "generate", "output": {"text": "ours"}}}
        assert read_outputs(db, tenant, flow.id, ["right"]) == read_outputs(db, other_tenant, flow.id, names) == {}

    def test_turns_are_read_by_their_numbers(
        self, db: Database, tenant: str, other_tenant: str, make_job: MakeJob
    ) -> None:
        needs: Needs = {"a:10": (), "a": (), "a:2": (), "b:1": (), "a:1": ()}
        flow = new_flow(make_job, needs)
        accept(db, [flow])
        ids = {step.step: step.id for step in flow.steps}
        end(db, ids["a:1"], output={"text": "one"})

        def turn(name: str, number: int, state: JobState = JobState.QUEUED, **more: Any) -> TurnStep:
            return TurnStep(ids[name], number, "generate", state, **{"epoch": 0, "output": None, **more})

        done = turn("a:1", 1, JobState.SUCCEEDED, epoch=1, output={"text": "one"})
        assert read_steps(db, tenant, flow.id, "a", first=0, most=16) == [
            turn("a", 0),
            done,
            turn("a:2", 2),
            turn("a:10", 10),
        ]
        assert read_steps(db, tenant, flow.id, "a", first=1, most=2) == [done, turn("a:2", 2)]
        assert read_steps(db, other_tenant, flow.id, "a", first=0, most=16) == []
        assert [number_of(name, "a") for name in ("a", "a:3", "b:3", "a:x", "ab")] == [0, 3, None, None, None]


class TestOutputs:
    def test_bulky_fields_are_left_out_of_lists_also_of_sealed_outputs(
        self, db: Database, tenant: str, accept_one: AcceptOne
    ) -> None:
        plain = accept_one()
        end(db, plain, output={"embeddings": [[0.5]], "text": "a"})
        db.seal = TurnedSeal("k1")
        sealed = accept_one()
        end(db, sealed, output={"embeddings": [[0.5]], "text": "a"})
        assert [job.output for job in list_jobs(db, tenant)] == [{"text": "a"}] * 2
        assert [get(db, tenant, job_id).output for job_id in (plain, sealed)] == [
            {"embeddings": [[0.5]], "text": "a"}
        ] * 2

    def test_a_stream_is_opened_for_its_tenant(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne
    ) -> None:
        db.seal = TurnedSeal("k1")
        job_id = accept_one()
        rows = ((LogprobRow(7, -0.5, ((7, -0.5),)),), ())
        end(db, job_id, deltas=("Hel", "lo"), logprobs=rows)
        stream = stored_deltas(db, tenant, job_id)
        assert stream is not None
        assert (stream.epoch, stream.deltas, stream.lineage) == (1, ["Hel", "lo"], ((1, 0),))
        assert (stream.logprobs, stream.marks) == (rows, ())
        assert stored_deltas(db, other_tenant, job_id) is None


class TestDeadLetters:
    def test_they_are_listed_with_their_filters_and_noted_once(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne
    ) -> None:
        db.seal = TurnedSeal("k1")
        ids = [accept_one(), accept_one(), accept_one(model="other")]
        foreign = accept_one(tenant_id=other_tenant)
        codes = ("poison", "max_attempts_exceeded", "poison", "poison")
        for job_id, code in zip((*ids, foreign), codes, strict=True):
            end(db, job_id, JobState.FAILED, output=None, error={"code": code, "message": f"why {code}"})

        def listed(**wanted: Any) -> list[str]:
            return [letter.job_id for letter in list_dead_letters(db, tenant, **wanted)]

        assert listed() == ids[::-1]
        assert listed(descending=False, limit=2) == ids[:2]
        assert (listed(after=ids[1]), listed(after=ids[1], descending=False)) == ([ids[0]], [ids[2]])
        assert (listed(code="poison"), listed(queue="x@1")) == ([ids[2], ids[0]], [])
        assert (listed(models=["other"]), listed(models=[])) == ([ids[2]], [])
        for new in ("job_new", "job_newer"):
            note_replay(db, tenant, ids[0], new, actor="key_1")
        note_replay(db, other_tenant, ids[1], "job_new", actor="key_2")
        assert (listed(replayed=True), listed(replayed=False)) == ([ids[0]], [ids[2], ids[1]])
        letter = get_dead_letter(db, tenant, ids[0])
        assert (letter.message, letter.code, letter.queue) == ("why poison", "poison", QUEUE)
        assert (letter.attempt, letter.crashes, letter.replayed_as) == (1, 0, "job_new")
        assert letter.replayed_at is not None
        noted = [entry for entry in list_entries(db, tenant) if entry.action == "dead_letter.replayed"]
        assert [(entry.resource, entry.actor, entry.detail) for entry in noted] == [
            (ids[0], "key_1", {"replayed_as": "job_new"})
        ]
        for missing in (foreign, "job_x"):
            with pytest.raises(NotFound, match=missing):
                get_dead_letter(db, tenant, missing)

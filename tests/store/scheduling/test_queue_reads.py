"""What the dispatcher, drivers and the API read of queues: ages, decisions, workers, positions, ended jobs."""

from datetime import timedelta
from typing import Any

import pytest

from headrace.features.planner.job_history import EndedJob, read_ended
from headrace.features.response_cache.entries import CacheLookup
from headrace.store.db.database import Database
from headrace.store.db.presence import Serving, beat, beat_worker, leave, leave_worker, read_serving
from headrace.store.errors import NotFound
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.jobs.jobs import accept, get, request_cancel
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.registry.models import register_version
from headrace.store.scheduling.autoscale import Decision, ScaleHistory
from headrace.store.scheduling.backlog import (
    LaneCandidate,
    Load,
    RecentMaximum,
    find_position,
    read_backlog,
    read_candidates,
    too_long_a_wait_s,
    within_share,
)
from headrace.store.scheduling.dispatch_queries import (
    BATCH_RANK,
    Claimable,
    QueueDepth,
    claim_candidates,
    claimable,
    closing,
    take_stale,
    take_waiting,
    task_of,
    waiting_queues,
)
from headrace.store.scheduling.queue_ages import QueueAge, read_queue_ages
from headrace.store.scheduling.queues import fold, forget_empty, pause, record_rates, resume, view_queues
from headrace.store.scheduling.scale_decisions import (
    StoredDecision,
    read_decisions,
    read_histories,
    read_running,
    read_slots,
    require_decision,
    write_decisions,
)
from headrace.store.scheduling.service_rate import Rate
from headrace.store.schema.job_states import UNSERVED_QUEUE, JobState
from tests.refusals import Naming
from tests.store.making import QUEUE, AcceptOne, MakeJob, Query

LOOKUP = CacheLookup("d", 3600.0)


def start(db: Database, *job_ids: str, owner: str = "worker", queue: str = QUEUE, **options: Any) -> None:
    assert claim(db, owner, queue, job_ids, 60.0, **options).keys() == set(job_ids)


class TestWorkers:
    def test_live_workers_are_counted_with_the_longest_request_that_one_can_hold(
        self, db: Database, query: Query
    ) -> None:
        for name, queue, capacity in (("a", QUEUE, 50), ("b", QUEUE, 200), ("dead", QUEUE, 900), ("c", "x@1", 50)):
            beat_worker(db, name, queue, capacity, slots=4)
        beat_worker(db, "d", "x@1", None)
        query("UPDATE worker_processes SET seen_at = now() - interval '11 s' WHERE id = 'dead'")
        assert read_serving(db) == {QUEUE: Serving(2, 200), "x@1": Serving(2, None)}
        query("UPDATE worker_processes SET seen_at = now() - interval '11 s' WHERE id = 'a'")
        beat_worker(db, "a", QUEUE, 300, slots=9)
        leave_worker(db, "b")
        assert read_serving(db)[QUEUE] == Serving(1, 300)
        assert read_slots(db) == {QUEUE: 9, "x@1": 4}
        query("UPDATE worker_processes SET seen_at = now() - interval '61 s' WHERE id IN ('dead', 'd')")
        query("UPDATE worker_processes SET seen_at = now() - interval '50 s' WHERE id = 'c'")
        beat_worker(db, "a", QUEUE, 300, slots=9)
        assert {row["id"] for row in query("SELECT id FROM worker_processes")} == {"a", "c"}
        beat_worker(db, "e", QUEUE, 300, slots=3)
        beat_worker(db, "f", QUEUE, 300)
        assert read_slots(db) == {QUEUE: 3}

    def test_live_processes_of_the_api_are_counted(self, db: Database, query: Query) -> None:
        assert [beat(db, name) for name in ("a", "b", "a", "c")] == [1, 2, 2, 3]
        query("UPDATE api_processes SET seen_at = now() - interval '11 s' WHERE id IN ('a', 'b')")
        query("UPDATE api_processes SET seen_at = now() - interval '61 s' WHERE id = 'c'")
        assert beat(db, "a") == 1
        assert {row["id"] for row in query("SELECT id FROM api_processes")} == {"a", "b"}
        leave(db, "a")
        assert [row["id"] for row in query("SELECT id FROM api_processes")] == ["b"]


class TestDecisions:
    def test_a_decision_is_in_force_for_half_a_minute_and_its_history_stays(self, db: Database, query: Query) -> None:
        history = ScaleHistory(3, 1.0, 2.0, 3.0, 4, 5.0, 6.0, 7.0, 8.0)
        write_decisions(db, {"b@1": Decision(3, "why", history), "a@1": Decision(1, "so", ScaleHistory())})
        found = read_decisions(db)
        assert list(found) == ["a@1", "b@1"]
        assert found["b@1"] == StoredDecision("b@1", 3, "why", found["b@1"].decided_at)
        assert require_decision(db, "b@1") == found["b@1"]
        assert read_histories(db, ["b@1", "c@1"]) == {"b@1": history}
        newer = ScaleHistory(5, 9.0)
        query("UPDATE queue_scaling SET decided_at = now() - interval '31 s'")
        write_decisions(db, {"b@1": Decision(5, "more", newer)})
        assert [(one.queue, one.replicas, one.reason) for one in read_decisions(db).values()] == [("b@1", 5, "more")]
        assert read_histories(db, ["a@1", "b@1"]) == {"a@1": ScaleHistory(), "b@1": newer}
        query("UPDATE queue_scaling SET history = history || '{\"of_another_release\": 1}'")
        assert read_histories(db, ["b@1"]) == {"b@1": newer}
        with pytest.raises(NotFound) as caught:
            require_decision(db, "a@1")
        assert (caught.value.code, caught.value.message) == (
            "not_autoscaled",
            Naming("a@1", "HEADRACE_AUTOSCALE"),
        )
        for days, left in ((29, ["a@1", "b@1"]), (31, ["b@1"])):
            query(f"UPDATE queue_scaling SET decided_at = now() - interval '{days} days' WHERE queue = 'a@1'")
            write_decisions(db, {})
            assert [row["queue"] for row in query("SELECT queue FROM queue_scaling ORDER BY queue")] == left

    def test_running_jobs_are_counted_by_queue(self, db: Database, accept_one: AcceptOne) -> None:
        ours, other = [accept_one() for _ in range(2)], accept_one(queue="other@1")
        accept_one()
        start(db, *ours)
        start(db, other, queue="other@1")
        assert read_running(db) == {QUEUE: 2, "other@1": 1}


class TestAges:
    def test_the_oldest_and_the_most_hurried_job_of_each_class_are_read(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        batch = accept_one(service_class=ServiceClass.BATCH, deadline_s=7200.0)
        old, hurried, running = accept_one(), accept_one(deadline_s=60.0), accept_one(deadline_s=30.0)
        accept_one(lookup=LOOKUP)
        waits = accept_one(lookup=LOOKUP)
        assert query("SELECT queue FROM jobs WHERE id = :id", id=waits) == [{"queue": UNSERVED_QUEUE}]
        query("UPDATE jobs SET created_at = created_at - interval '90 s' WHERE id = :id", id=old)
        query("UPDATE jobs SET created_at = created_at - interval '1 h' WHERE id IN (:a, :b)", a=running, b=waits)
        start(db, running)
        deadlines = {row["id"]: row["deadline_at"] for row in query("SELECT id, deadline_at FROM jobs")}
        standard, late = read_queue_ages(db)
        assert standard.oldest_age_s is not None
        assert late.oldest_age_s is not None
        assert (90 <= standard.oldest_age_s < 300, 0 <= late.oldest_age_s < 90) == (True, True)
        assert standard == QueueAge(QUEUE, 1, standard.oldest_age_s, deadlines[hurried])
        assert late == QueueAge(QUEUE, BATCH_RANK, late.oldest_age_s, deadlines[batch])
        few = read_queue_ages(db, most=1)
        assert [one.earliest_deadline for one in few] == [None, None], "the next deadline is that of a running job"
        query(
            "UPDATE jobs SET state = 'expired', completed_at = now(), owner = NULL, lease_expires_at = NULL "
            "WHERE id = :id",
            id=running,
        )
        few = read_queue_ages(db, most=1)
        assert [one.earliest_deadline for one in few] == [deadlines[hurried], None], "an ended job has none"


class TestEndedJobs:
    def test_a_job_that_never_started_and_one_that_failed_are_not_typical(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        failed, cancelled = accept_one(input_tokens=0, cost_tokens=0), accept_one(input_tokens=9, cost_tokens=2)
        start(db, failed)
        usage = {"input_tokens": 0, "queue_ms": 1.0, "compute_ms": 1.0}
        finish(db, [Finish(failed, 1, JobState.FAILED, None, {"code": "x", "message": "y"}, usage)])
        request_cancel(db, tenant, cancelled)
        query("UPDATE jobs SET usage = '{\"output_tokens\": 3}' WHERE id = :id", id=cancelled)
        first, second = read_ended(db, QUEUE, 3600.0)
        assert (first.is_typical, first.input_tokens, first.cost_tokens, first.output_tokens) == (False, 1, 0, 0)
        assert (first.worker, first.first_token_s) == ("worker", None)
        job = get(db, tenant, cancelled)
        never = (None, None, None, False)
        assert second == EndedJob(tenant, 1, job.created_at, job.deadline_at, *never, 9, 9, 3, None)


class TestQueueViews:
    def test_a_queue_is_listed_while_it_is_used(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        about: dict[str, Any] = {"source": "", "digest": "0" * 64, "dtype": "auto", "context_window": 8, "files": {}}
        for model in ("known", "retired"):
            register_version(db, model=model, runner="torch", actor="tests", **about)
        query("UPDATE model_versions SET retired_at = now() WHERE model = 'retired'")
        ours, theirs = accept_one(), accept_one(tenant_id=other_tenant)
        accept_one(lookup=LOOKUP, service_class=ServiceClass.INTERACTIVE)
        accept_one(lookup=LOOKUP)
        request_cancel(db, tenant, accept_one(queue="gone@1"))
        fold(db)
        start(db, ours, theirs)
        beat_worker(db, "w", QUEUE, None)
        write_decisions(db, {QUEUE: Decision(2, "why", ScaleHistory())})
        found = {view.name: view for view in view_queues(db, read_backlog(db), tenant_id=None)}
        assert list(found) == ["known@1", QUEUE]
        view = found[QUEUE]
        assert (view.running, view.workers, view.announced, view.queued) == (2, 1, 1, Load(1, 13))
        assert view.by_class == {
            ServiceClass.INTERACTIVE: Load(1, 13),
            ServiceClass.STANDARD: Load(),
            ServiceClass.BATCH: Load(),
        }
        assert view.scaling is not None
        assert (view.scaling.replicas, view.rate, view.paused_by) == (2, None, None)
        assert (found["known@1"].workers, found["known@1"].scaling, found["known@1"].oldest_age_s) == (0, None, None)
        (own,) = view_queues(db, read_backlog(db), tenant_id=tenant, name=QUEUE)
        assert own.running == 1
        with pytest.raises(NotFound) as caught:
            view_queues(db, read_backlog(db), tenant_id=None, name=UNSERVED_QUEUE)
        assert caught.value.message == Naming(repr(UNSERVED_QUEUE), "smollm2@1")
        with pytest.raises(NotFound):
            pause(db, tenant, UNSERVED_QUEUE, actor="key_1")
        pause(db, tenant, "retired@1", actor="key_1")
        names = [one.name for one in view_queues(db, read_backlog(db), tenant_id=None)]
        assert names == ["known@1", "retired@1", QUEUE]
        resume(db, tenant, "retired@1", actor="key_1")

    def test_a_queue_that_is_paused_while_it_is_empty_can_be_resumed(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one(queue="gone@1")
        pause(db, tenant, "gone@1", actor="key_1")
        request_cancel(db, tenant, job_id)
        fold(db)
        assert forget_empty(db) == 1
        resume(db, tenant, "gone@1", actor="key_1")
        assert query("SELECT queue FROM queue_controls") == []

    def test_a_job_that_left_counts_once_and_totals_with_tokens_stay(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        accept_one(cost_tokens=7)
        fold(db)
        start(db, accept_one(cost_tokens=9))
        (moved,) = fold(db).values()
        assert (moved.num_before, moved.num_left, moved.started_jobs, moved.started_tokens) == (1, 1, 1, 9)
        query("UPDATE queue_totals SET jobs = 0")
        assert forget_empty(db) == 0
        query("UPDATE queue_totals SET tokens = 0")
        assert forget_empty(db) == 1

    def test_no_rates_are_no_statement(self, db: Database, query: Query) -> None:
        record_rates(db, {})
        record_rates(db, {"b@1": Rate(1.0, 2.0), "a@1": Rate(3.0, 4.0)})
        assert query("SELECT queue, jobs_per_s, tokens_per_s FROM queue_rates ORDER BY queue") == [
            {"queue": "a@1", "jobs_per_s": 3.0, "tokens_per_s": 4.0},
            {"queue": "b@1", "jobs_per_s": 1.0, "tokens_per_s": 2.0},
        ]


class TestPositions:
    def test_ahead_are_the_jobs_that_were_announced_before_and_the_tokens_of_long_prompts(
        self, db: Database, tenant: str, make_job: MakeJob, accept_one: AcceptOne
    ) -> None:
        announced = [make_job(cost_tokens=10) for _ in range(3)]
        accept(db, announced)
        places = [find_position(db, read_backlog(db), get(db, tenant, job.id)) for job in announced]
        assert [place and place.position for place in places] == [1, 2, 3], "at one time, by their ids"
        long = accept_one(announce=False, input_tokens=500, cost_tokens=20)
        behind = accept_one(announce=False, cost_tokens=10)
        record_rates(db, {QUEUE: Rate(1.0, 10.0)})
        backlog = read_backlog(db)
        found = [find_position(db, backlog, get(db, tenant, job_id)) for job_id in (long, behind)]
        waits = [place and place.starts_at and (place.starts_at - backlog.at).total_seconds() for place in found]
        assert ([place and place.position for place in found], waits) == ([4, 5], [3.0, 53.0])
        record_rates(db, {QUEUE: Rate(1.0, 1e-9)})
        backlog = read_backlog(db)
        last = find_position(db, backlog, get(db, tenant, behind))
        assert last is not None
        assert last.starts_at == backlog.at + timedelta(days=3650)

    def test_a_job_that_waits_for_another_answer_has_none(
        self, db: Database, tenant: str, accept_one: AcceptOne
    ) -> None:
        accept_one(lookup=LOOKUP)
        sharer = accept_one(lookup=LOOKUP)
        assert find_position(db, read_backlog(db), get(db, tenant, sharer)) is None

    def test_a_wait_as_long_as_the_deadline_is_accepted(
        self, db: Database, make_job: MakeJob, accept_one: AcceptOne
    ) -> None:
        accept_one(cost_tokens=100)
        record_rates(db, {QUEUE: Rate(1.0, 10.0)})
        waits = [too_long_a_wait_s(db, read_backlog(db), make_job(deadline_s=seconds)) for seconds in (10.0, 9.9)]
        assert waits == [None, 10.0]


class TestDispatch:
    def test_the_longest_announced_are_announced_again_first(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        ids = [accept_one() for _ in range(3)]
        accept_one(queue="other@1")
        for age, job_id in zip((60, 90, 30), ids, strict=True):
            query("UPDATE jobs SET announced_at = now() - make_interval(secs => :s) WHERE id = :id", s=age, id=job_id)
        assert take_stale(db, QUEUE, 20.0, 2) == [ids[1], ids[0]]
        assert take_stale(db, QUEUE, 20.0, 9) == [ids[2]]
        assert take_stale(db, QUEUE, 20.0, 9) == []

    def test_a_queue_is_told_with_its_batch_jobs_and_slots(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        batch, standard, _ = accept_one(service_class=ServiceClass.BATCH), accept_one(), accept_one(announce=False)
        start(db, batch, standard)
        accept_one(announce=False, service_class=ServiceClass.BATCH)
        suspect = accept_one(announce=False)
        query("UPDATE jobs SET is_suspect = true WHERE id = :id", id=suspect)
        accept_one(lookup=LOOKUP, queue="other@1")
        accept_one(lookup=LOOKUP)
        beat_worker(db, "w", QUEUE, None)
        found = {depth.queue: depth for depth in waiting_queues(db, usual_slots=7)}
        assert found.keys() == {QUEUE, "other@1"}
        assert found[QUEUE] == QueueDepth(QUEUE, 2, 0, None, batch_under_way=1, num_slots=7)
        assert (found["other@1"].announced, found["other@1"].num_slots) == (1, 7)
        assert waiting_queues(db, most=1)[-1].waiting == 1

    def test_of_many_batch_jobs_only_so_many_are_taken_with_the_others(
        self, db: Database, accept_one: AcceptOne
    ) -> None:
        batch = [accept_one(announce=False, service_class=ServiceClass.BATCH) for _ in range(3)]
        better = accept_one(announce=False)
        assert take_waiting(db, QUEUE, 9, most_batch=1) == [better, batch[0]]
        assert take_waiting(db, QUEUE, 9, most_batch=0) == []
        assert take_waiting(db, QUEUE, 9) == batch[1:]

    def test_the_place_for_the_longest_waiting_is_not_for_a_batch_job_that_may_not_be_taken(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        batch = accept_one(announce=False, service_class=ServiceClass.BATCH)
        query("UPDATE jobs SET created_at = now() - interval '1 h' WHERE id = :id", id=batch)
        better = [accept_one(announce=False) for _ in range(9)]
        assert take_waiting(db, QUEUE, 9, most_batch=0) == better

    def test_announced_jobs_are_claimed_by_their_time_and_fill_up_the_number(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        first, second = accept_one(), accept_one()
        waiting = [accept_one(announce=False) for _ in range(3)]
        query("UPDATE jobs SET announced_at = now() - interval '1 min' WHERE id = :id", id=second)
        assert claim_candidates(db, QUEUE, 3) == [second, first, waiting[0]]
        assert claim_candidates(db, QUEUE, 1) == [second]
        query("UPDATE jobs SET is_suspect = true WHERE id = :id", id=second)
        assert claim_candidates(db, QUEUE, 2) == [first, waiting[0]]
        assert claimable(db, QUEUE, "other@1") == Claimable(suspects=True, others=True)
        assert claimable(db, "other@1") == claimable(db) == Claimable(suspects=False, others=False)
        assert task_of(db, first) == "generate"

    def test_one_worker_closes_and_only_while_no_other_has_fewer_jobs(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        mine, theirs, adapters = [accept_one() for _ in range(2)], accept_one(), accept_one(queue="lora@1")
        start(db, *mine, owner="me")
        start(db, theirs, owner="them")

        def closer(owner: str = "me", *, heed_load: bool = True, adapters: tuple[str, ...] = ()) -> bool:
            with closing(db, QUEUE, owner, heed_load=heed_load, adapters=adapters) as found:
                return found is not None

        assert (closer(), closer(heed_load=False), closer("them")) == (False, True, True)
        start(db, adapters, owner="them", queue="lora@1")
        assert (closer(), closer(adapters=("lora@1",))) == (False, True), "as many are no fewer"
        with closing(db, QUEUE, "me", heed_load=False, adapters=("lora@1",)) as found:
            assert found is not None
            assert not found.is_needed()
            assert not closer("them", heed_load=False), "there is one"
            suspect = accept_one(queue="lora@1")
            query("UPDATE jobs SET is_suspect = true WHERE id = :id", id=suspect)
            assert found.is_needed()
        query("UPDATE jobs SET is_suspect = true WHERE id = :id", id=theirs)
        assert not closer(heed_load=False), "another worker runs one"
        query("UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE id = :id", id=theirs)
        assert closer(), "that worker is dead"


class TestFairShare:
    def test_queues_are_apart_and_suspects_hold_no_one_back(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        start(db, *[accept_one() for _ in range(4)])
        elsewhere = accept_one(queue="other@1")
        start(db, elsewhere, queue="other@1")
        suspect = accept_one(announce=False, service_class=ServiceClass.INTERACTIVE)
        query("UPDATE jobs SET is_suspect = true WHERE id = :id", id=suspect)

        def lane(queue: str, count: int) -> list[LaneCandidate]:
            return [LaneCandidate(f"{queue}/{number}", queue, other_tenant, 1) for number in range(count)]

        found = within_share(db, [*lane("other@1", 1), *lane(QUEUE, 3), *lane("idle@1", 1)], RecentMaximum())
        assert found == {f"{QUEUE}/0", f"{QUEUE}/1"}

    def test_candidates_come_in_the_order_that_was_asked(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne
    ) -> None:
        first, second = accept_one(), accept_one(tenant_id=other_tenant, service_class=ServiceClass.BATCH)
        assert read_candidates(db, [second, "job_x", first]) == [
            LaneCandidate(second, QUEUE, other_tenant, 2),
            LaneCandidate(first, QUEUE, tenant, 1),
        ]

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Connection, text

from headrace.store.db.database import Database
from headrace.store.db.presence import beat_worker
from headrace.store.jobs.claims import Release, claim, release
from headrace.store.jobs.jobs import Accepted, accept, get
from headrace.store.jobs.sweeps import sweep_leases
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.scheduling.dispatch_queries import (
    Claimable,
    QueueDepth,
    RoundRobin,
    claim_candidates,
    claimable,
    forget_announcements,
    take_stale,
    take_waiting,
    waiting_queues,
)
from headrace.store.settings import Settings
from tests.store.making import QUEUE, AcceptOne, MakeJob, Query


def start(db: Database, *job_ids: str) -> None:
    assert set(claim(db, "worker", QUEUE, job_ids, 60.0)) == set(job_ids)


class TestAnnouncing:
    def test_waiting_jobs_are_taken_in_order_and_once(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        waits: dict[str, Any] = {"announce": False}
        batch = accept_one(**waits, service_class=ServiceClass.BATCH, priority=0)
        low = accept_one(**waits, priority=9)
        first, second = accept_one(**waits), accept_one(**waits)
        online = accept_one(**waits, service_class=ServiceClass.INTERACTIVE, priority=9)
        accept_one(**waits, queue="other@1")
        assert take_waiting(db, QUEUE, 3) == [online, first, second]
        assert take_waiting(db, QUEUE, 3) == [low, batch]
        assert take_waiting(db, QUEUE, 3) == []
        assert get(db, tenant, batch).announced_at is not None

    def test_no_more_of_the_batch_class_than_may_join(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        batch = [accept_one(announce=False, service_class=ServiceClass.BATCH) for _ in range(6)]
        # One has waited for long; the places of others do not help it past the bound.
        query("UPDATE jobs SET created_at = now() - interval '1 h' WHERE id = :id", id=batch[5])
        better = [accept_one(announce=False) for _ in range(3)]
        assert take_waiting(db, QUEUE, 10, most_batch=0) == better
        assert take_waiting(db, QUEUE, 10, most_batch=0) == []
        assert len(take_waiting(db, QUEUE, 10, most_batch=2)) == 2
        start(db, take_waiting(db, QUEUE, 10, most_batch=1)[0])
        (found,) = waiting_queues(db)
        assert (found.waiting, found.batch_under_way) == (3, 3)

    def test_a_claimed_job_is_not_announced(self, db: Database, accept_one: AcceptOne) -> None:
        start(db, accept_one(announce=False))
        assert take_waiting(db, QUEUE, 1) == []

    def test_what_nobody_claimed_is_announced_again(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        old, older, new, waiting = accept_one(), accept_one(), accept_one(), accept_one(announce=False)
        for job_id, age in ((old, 20), (older, 30)):
            query("UPDATE jobs SET announced_at = now() - :age * interval '1 s' WHERE id = :id", age=age, id=job_id)
        assert take_stale(db, QUEUE, 10, 1) == [older]
        assert take_stale(db, QUEUE, 10, 5) == [old]
        assert take_stale(db, QUEUE, 10, 5) == []
        assert take_stale(db, "other@1", 0, 5) == []
        assert take_stale(db, QUEUE, 0, 5) == [new, older, old]
        assert get(db, tenant, waiting).announced_at is None

    def test_after_a_wipe_everybody_queued_waits_again(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        first, second, running = accept_one(), accept_one(), accept_one()
        start(db, running)
        assert forget_announcements(db) == 2
        assert forget_announcements(db) == 0
        assert take_waiting(db, QUEUE, 5) == [first, second]
        assert get(db, tenant, running).announced_at is not None

    def test_depths_tell_waiting_from_announced(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        assert waiting_queues(db) == []
        for queue in ("b@1", "a@1", "b@1"):
            accept_one(queue=queue)
        for _ in range(2):
            accept_one(queue="b@1", announce=False)
        accept_one(queue="c@1", announce=False)
        start(db, accept_one())
        running = accept_one(queue="b@1", service_class=ServiceClass.BATCH)
        assert set(claim(db, "worker", "b@1", [running], 60.0)) == {running}
        query("UPDATE jobs SET announced_at = now() - interval '1 h' WHERE state = 'running'")
        query("UPDATE jobs SET announced_at = now() - interval '30 s' WHERE queue = 'a@1'")
        found = {depth.queue: depth for depth in waiting_queues(db)}
        assert list(found) == ["a@1", "b@1", "c@1"]
        assert (found["b@1"].waiting, found["b@1"].announced) == (2, 2)
        assert found["b@1"].batch_under_way == 1
        assert (found["b@1"].oldest_announced_s or 0) < 90, "of those that are queued"
        assert found["c@1"] == QueueDepth(queue="c@1", waiting=1, announced=0, oldest_announced_s=None, num_slots=1)
        assert (found["a@1"].waiting, found["a@1"].announced) == (0, 1)
        assert found["a@1"].oldest_announced_s is not None
        assert 30 <= found["a@1"].oldest_announced_s < 90

    def test_slots_are_those_that_the_live_workers_report(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        for queue in ("a@1", "b@1"):
            accept_one(queue=queue)
        for name, slots in (("small", 4), ("large", 32), ("dead", 64), ("old", None)):
            beat_worker(db, name, "a@1", None, slots=slots)
        query("UPDATE worker_processes SET seen_at = now() - interval '1 h' WHERE id = 'dead'")
        found = {depth.queue: depth.num_slots for depth in waiting_queues(db, usual_slots=8)}
        assert found == {"a@1": 44, "b@1": 8}


class CountingDatabase(Database):
    """Counts the rows of ``jobs`` that its transactions read, by whatever plan."""

    num_read = 0

    @contextmanager
    def begin(self, *, tenant_id: str | None = None) -> Iterator[Connection]:
        with super().begin(tenant_id=tenant_id) as connection:
            yield connection
            self.num_read += connection.execute(
                text("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'jobs'")
            ).scalar_one()
            # Otherwise the server hands on what it counted once a second, and the next transaction shows it again.
            connection.execute(text("SELECT pg_stat_force_next_flush()"))

    @contextmanager
    def autocommit(self, *, tenant_id: str | None = None) -> Iterator[Connection]:
        with self.begin(tenant_id=tenant_id) as connection:
            yield connection


class TestFairOrder:
    @pytest.mark.parametrize("tokens", [{"cost_tokens": 2048}, {"cost_tokens": 1, "input_tokens": 2048}])
    def test_tenants_share_by_tokens_and_go_on_where_they_stopped(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, tokens: dict[str, int]
    ) -> None:
        many = [accept_one(announce=False, cost_tokens=1024) for _ in range(9)]
        few = [accept_one(announce=False, tenant_id=other_tenant, **tokens) for _ in range(3)]
        round_robin = RoundRobin()
        order = [job_id for _ in range(12) for job_id in take_waiting(db, QUEUE, 1, round_robin)]
        if tenant < other_tenant:
            assert order[:6] == [many[0], many[1], few[0], many[2], many[3], few[1]]
        else:
            assert order[:6] == [few[0], many[0], many[1], few[1], many[2], many[3]]
        assert sorted(order) == sorted(many + few)

    def test_the_earliest_deadline_goes_first_among_equals(self, db: Database, accept_one: AcceptOne) -> None:
        patient, hurried = accept_one(announce=False), accept_one(announce=False, deadline_s=60.0)
        important = accept_one(announce=False, priority=4)
        assert take_waiting(db, QUEUE, 3) == [important, hurried, patient]

    def test_every_eighth_place_is_for_the_longest_waiting(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        batch = [accept_one(announce=False, service_class=ServiceClass.BATCH) for _ in range(3)]
        query("UPDATE jobs SET created_at = now() - interval '2 min' WHERE id = :id", id=batch[2])
        query("UPDATE jobs SET created_at = now() - interval '1 min' WHERE id = :id", id=batch[1])
        online = [accept_one(announce=False, service_class=ServiceClass.INTERACTIVE) for _ in range(20)]
        taken = take_waiting(db, QUEUE, 17, RoundRobin(ageing_s=30))
        assert (taken[7], taken[15]) == (batch[2], batch[1])
        assert [job_id for job_id in taken if job_id not in batch] == online[:15]

    def test_nothing_of_a_paused_queue_is_taken(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        accept_one(announce=False)
        query("INSERT INTO queue_controls (queue, paused_by) VALUES (:queue, 'test')", queue=QUEUE)
        assert take_waiting(db, QUEUE, 9) == []

    def test_more_tenants_than_are_looked_at_once_all_have_their_turn(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        template = accept_one(announce=False)
        _multiply(query, template, num_tenants=600, num_jobs=600)
        round_robin, taken = RoundRobin(), list[str]()
        while fresh := take_waiting(db, QUEUE, 200, round_robin):
            taken += fresh
        assert len(taken) == len(set(taken)) == 601

    def test_two_dispatchers_take_no_job_twice(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        template = accept_one(announce=False)
        _multiply(query, template, num_tenants=3, num_jobs=300)
        barrier = Barrier(4)

        def take() -> list[str]:
            barrier.wait(20)
            round_robin = RoundRobin()
            return [job_id for _ in range(40) for job_id in take_waiting(db, QUEUE, 10, round_robin)]

        with ThreadPoolExecutor(4) as pool:
            taken = [job_id for done in [pool.submit(take) for _ in range(4)] for job_id in done.result(60)]
        taken += take_waiting(db, QUEUE, 1000)
        assert len(taken) == len(set(taken)) == 301

    def test_a_long_queue_costs_no_more_reading_than_a_short_one(
        self, settings: Settings, accept_one: AcceptOne, query: Query
    ) -> None:
        """Also while the statistics, and so the plans, are still those of an empty queue."""
        template = accept_one(announce=False)
        _multiply(query, template, num_tenants=50, num_jobs=2_000)
        query("UPDATE jobs SET state = 'succeeded', completed_at = now() WHERE id <> :id", id=template)
        query("ANALYZE jobs")
        counting = CountingDatabase(settings.database_url, application_name="tests that count")
        read = []
        try:
            for num_jobs in (1_000, 20_000):
                _multiply(query, template, num_tenants=50, num_jobs=num_jobs)
                counting.num_read = 0
                assert len(take_waiting(counting, QUEUE, 32)) == 32
                candidates = claim_candidates(counting, QUEUE, 32)
                assert len(claim(counting, "worker", QUEUE, candidates, 60.0)) == 32
                read.append(counting.num_read)
        finally:
            counting.close()
        # A plan may read the same few rows twice; one that reads the queue reads twenty times as many.
        assert read[1] < 3 * read[0] < 10_000


def _multiply(query: Query, template: str, *, num_tenants: int, num_jobs: int) -> None:
    """Queue copies of a job for new tenants, an equal number in each class, without the cost of accepting them."""
    query(
        "INSERT INTO tenants (id, name, webhook_secret)"
        " SELECT 'ten_' || n, 'ten_' || n, 'x' FROM generate_series(1, :n) AS n ON CONFLICT DO NOTHING",
        n=num_tenants,
    )
    copied = (
        "task, model, model_version, queue, priority, payload, input_tokens, cost_tokens, max_attempts, deadline_at"
    )
    query(
        f"INSERT INTO jobs (id, tenant_id, class_rank, {copied})"
        f" SELECT format('job_%s_%s', CAST(:num_jobs AS int), n), 'ten_' || n % :num_tenants + 1, n % 3, {copied}"
        " FROM jobs, generate_series(1, CAST(:num_jobs AS int)) AS n WHERE jobs.id = :template",
        num_tenants=num_tenants,
        num_jobs=num_jobs,
        template=template,
    )


class TestDirectClaims:
    def test_what_was_announced_long_ago_comes_before_what_waits(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        announced, batch = accept_one(), accept_one(announce=False, service_class=ServiceClass.BATCH)
        online = accept_one(announce=False, service_class=ServiceClass.INTERACTIVE)
        start(db, accept_one())
        accept_one(queue="other@1")
        assert claim_candidates(db, QUEUE, 9) == [announced, online, batch]
        assert claim_candidates(db, QUEUE, 2) == [announced, online]
        assert claim_candidates(db, QUEUE, 9, older_than_s=30) == []
        query("UPDATE jobs SET created_at = now() - interval '40 s' WHERE id <> :id", id=online)
        assert claim_candidates(db, QUEUE, 9, older_than_s=30) == [batch]
        query("UPDATE jobs SET announced_at = created_at WHERE id = :id", id=announced)
        assert claim_candidates(db, QUEUE, 9, older_than_s=30) == [announced, batch]
        hasty = RoundRobin(ageing_s=10)
        assert claim_candidates(db, QUEUE, 9, older_than_s=60, round_robin=hasty) == [], "also if it waits long"

    def test_suspects_and_others_are_never_mixed(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        good, suspect = accept_one(announce=False), accept_one(announce=False)
        query("UPDATE jobs SET is_suspect = true, crashes = 1 WHERE id = :id", id=suspect)
        assert claim_candidates(db, QUEUE, 9) == [good]
        assert claim_candidates(db, QUEUE, 9, suspects=True) == [suspect]
        assert take_waiting(db, QUEUE, 9) == [good], "a suspect is not announced either"

    def test_suspects_come_in_the_order_of_the_others(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        batch = accept_one(service_class=ServiceClass.BATCH, priority=0)
        low, patient, hurried = accept_one(priority=9), accept_one(), accept_one(deadline_s=60.0)
        running = accept_one(priority=0)
        query("UPDATE jobs SET is_suspect = true")
        accept_one(queue="other@1")
        assert set(claim(db, "worker", QUEUE, [running], 60.0, suspects=True)) == {running}
        assert claim_candidates(db, QUEUE, 9, suspects=True) == [hurried, patient, low, batch]
        assert claim_candidates(db, QUEUE, 2, suspects=True) == [hurried, patient]
        assert claim_candidates(db, QUEUE, 9, suspects=True, older_than_s=30) == []
        assert claim_candidates(db, QUEUE, 9) == []
        assert claimable(db, QUEUE) == Claimable(suspects=True, others=False)
        assert claimable(db, "other@1") == Claimable(suspects=False, others=True)

    def test_a_suspect_that_lost_more_workers_waits_for_the_others(self, db: Database, accept_one: AcceptOne) -> None:
        """Also if the loss was not charged, because Postgres was away then."""
        twice, uncharged, fresh = accept_one(priority=0), accept_one(priority=1), accept_one(priority=9)
        for job_id, blames in ((twice, (True, True)), (uncharged, (True, False)), (fresh, (True,))):
            for number, blame in enumerate(blames):
                assert claim(db, f"{job_id} {number}", QUEUE, [job_id], 0.0, suspects=number > 0)
                sweep_leases(db, blame=blame)
        assert claim_candidates(db, QUEUE, 9, suspects=True) == [fresh, uncharged, twice]

    def test_the_newest_suspects_of_each_lost_worker_come_last(self, db: Database, accept_one: AcceptOne) -> None:
        """Whatever their class and priority: a job mostly ends its worker in its first steps."""
        hurried: dict[str, Any] = {"service_class": ServiceClass.INTERACTIVE, "priority": 0}
        killers = [accept_one(**hurried), accept_one(**hurried)]
        innocents = [accept_one(priority=9) for _ in range(3)]
        began = [("first", innocents[0]), ("first", killers[0])]
        began += [("second", job_id) for job_id in (*innocents[1:], killers[1])]
        held = [claim(db, owner, QUEUE, [job_id], 0.0)[job_id] for owner, job_id in began]
        # The engine of the first died, so that it gave its jobs back; the leases of the second ran out.
        assert release(db, [Release(one.job_id, one.epoch, charge=True, crashed=True) for one in held[:2]])
        sweep_leases(db)
        found = claim_candidates(db, QUEUE, 9, suspects=True)
        assert (set(found[:3]), found[3:]) == (set(innocents), killers)

    def test_an_announced_job_that_no_worker_has_waits_while_its_queue_is_paused(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        announced = accept_one()
        assert claim_candidates(db, QUEUE, 9) == [announced]
        query("INSERT INTO queue_controls (queue, paused_by) VALUES (:queue, 'test')", queue=QUEUE)
        assert claim_candidates(db, QUEUE, 9) == []

    def test_a_paused_queue_has_none_and_others_have(
        self, db: Database, make_job: MakeJob, accept_one: AcceptOne, query: Query
    ) -> None:
        query("INSERT INTO queue_controls (queue, paused_by) VALUES ('other@1', 'test')")
        waiting, suspect = accept_one(announce=False), accept_one(announce=False)
        query("UPDATE jobs SET is_suspect = true WHERE id = :id", id=suspect)
        for paused in (False, True):
            if paused:
                query("INSERT INTO queue_controls (queue, paused_by) VALUES (:queue, 'test')", queue=QUEUE)
            assert claim_candidates(db, QUEUE, 9) == ([] if paused else [waiting])
            assert claim_candidates(db, QUEUE, 9, suspects=True) == ([] if paused else [suspect])
            assert claimable(db, QUEUE) == Claimable(suspects=not paused, others=not paused)
            assert [depth.is_paused for depth in waiting_queues(db)] == [paused]
            assert claim(db, "worker", QUEUE, [suspect], 60.0, suspects=not paused).keys() == (
                set() if paused else {suspect}
            )
            (accepted,) = accept(db, [make_job(service_class=ServiceClass.INTERACTIVE)])
            assert isinstance(accepted, Accepted)
            assert accepted.announced is not paused
            assert take_waiting(db, QUEUE, 9) == ([] if paused else [waiting])
            query("UPDATE jobs SET state = 'queued', owner = NULL, lease_expires_at = NULL, announced_at = NULL")
            query("DELETE FROM jobs WHERE id = :id", id=accepted.job_id)

from typing import Any

from store.claims import claim
from store.db import Database
from store.jobs import get
from store.ordering import (
    QueueDepth,
    claim_candidates,
    forget_announcements,
    take_stale,
    take_waiting,
    waiting_queues,
)
from store.payloads import ServiceClass
from tests.store.making import QUEUE, AcceptOne, Query


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
        query("UPDATE jobs SET announced_at = now() - interval '30 s' WHERE queue = 'a@1'")
        found = {depth.queue: depth for depth in waiting_queues(db)}
        assert list(found) == ["a@1", "b@1", "c@1"]
        assert (found["b@1"].waiting, found["b@1"].announced) == (2, 2)
        assert found["c@1"] == QueueDepth(queue="c@1", waiting=1, announced=0, oldest_announced_s=None)
        assert (found["a@1"].waiting, found["a@1"].announced) == (0, 1)
        assert found["a@1"].oldest_announced_s is not None
        assert 30 <= found["a@1"].oldest_announced_s < 90


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

    def test_suspects_and_others_are_never_mixed(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        good, suspect = accept_one(announce=False), accept_one(announce=False)
        query("UPDATE jobs SET is_suspect = true, crashes = 1 WHERE id = :id", id=suspect)
        assert claim_candidates(db, QUEUE, 9) == [good]
        assert claim_candidates(db, QUEUE, 9, suspects=True) == [suspect]
        assert take_waiting(db, QUEUE, 9) == [good], "a suspect is not announced either"

    def test_a_paused_queue_has_none(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        accept_one(announce=False)
        query("INSERT INTO queue_controls (queue, paused_by) VALUES (:queue, 'test')", queue=QUEUE)
        assert claim_candidates(db, QUEUE, 9) == []

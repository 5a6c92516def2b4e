"""Queue counters compared with a real count; pause and resume; positions and waits."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.errors import NotFound
from headrace.store.jobs.claims import Release, claim, release
from headrace.store.jobs.jobs import accept, get, request_cancel
from headrace.store.jobs.sweeps import expire_overdue, sweep_leases
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.scheduling import backlog as backlogs
from headrace.store.scheduling.backlog import (
    Backlog,
    Load,
    QueuePosition,
    find_position,
    read_backlog,
    too_long_a_wait_s,
)
from headrace.store.scheduling.dispatch_queries import take_waiting
from headrace.store.scheduling.queues import fold, forget_empty, pause, record_rates, resume, view_queues
from headrace.store.scheduling.service_rate import KNOWN_FOR_S, Rate
from tests.store.making import QUEUE, AcceptOne, MakeJob, Query

COUNTED = """
SELECT queue, tenant_id, class_rank, count(*) AS jobs, sum(GREATEST(cost_tokens, input_tokens)) AS tokens FROM jobs
WHERE state = 'queued' GROUP BY queue, tenant_id, class_rank
"""


def counts(backlog: Backlog) -> set[tuple[object, ...]]:
    return {(s.queue, s.tenant_id, s.class_rank, s.queued.jobs, s.queued.tokens) for s in backlog.shares}


def counted(query: Query) -> set[tuple[object, ...]]:
    return {tuple(row.values()) for row in query(COUNTED)}


def measure(db: Database, jobs_per_s: float, tokens_per_s: float, queue: str = QUEUE) -> None:
    record_rates(db, {queue: Rate(jobs_per_s, tokens_per_s)})


class TestCounts:
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=st.lists(st.integers(0, 7), min_size=5, max_size=25))
    def test_they_are_what_counting_gives(
        self, db: Database, tenant: str, other_tenant: str, make_job: MakeJob, query: Query, steps: list[int]
    ) -> None:
        """Whatever moves jobs, folded or not."""
        ids: list[str] = []
        for number, step in enumerate(steps):
            match step:
                case 0 | 1:
                    job = make_job(
                        tenant_id=(tenant, other_tenant)[number % 2],
                        service_class=list(ServiceClass)[number % 3],
                        cost_tokens=number * 7,
                        deadline_s=-100.0 if number % 5 == 0 else 3600.0,
                    )
                    accept(db, [job, make_job(queue="other@1")])
                    ids.append(job.id)
                case 2:
                    claim(db, "worker", QUEUE, ids[-3:], 0 if number % 2 else 60)
                case 3:
                    release(db, [Release(job_id, 1) for job_id in ids])
                case 4:
                    sweep_leases(db)
                case 5:
                    expire_overdue(db)
                case 6:
                    take_waiting(db, QUEUE, 2)
                case _:
                    fold(db, most=3)
            assert counts(read_backlog(db)) == counted(query)
        while fold(db):
            pass
        assert counts(read_backlog(db)) == counted(query)

    def test_folding_tells_what_happened_to_each_queue(self, db: Database, accept_one: AcceptOne, tenant: str) -> None:
        first, second, third = (accept_one(cost_tokens=100) for _ in range(3))
        accept_one(queue="other@1")
        before = fold(db)
        assert (before[QUEUE].num_before, before[QUEUE].num_left, before[QUEUE].started_jobs) == (0, 0, 0)
        assert set(before) == {QUEUE, "other@1"}
        claim(db, "worker", QUEUE, [first, second], 60)
        request_cancel(db, tenant, third)
        moved = fold(db)
        assert set(moved) == {QUEUE}
        assert (moved[QUEUE].num_before, moved[QUEUE].num_left) == (3, 3)
        assert (moved[QUEUE].started_jobs, moved[QUEUE].started_tokens) == (2, 200)
        assert moved[QUEUE].at > before[QUEUE].at
        assert fold(db) == {}

    def test_two_that_fold_at_once_lose_nothing_and_add_nothing_twice(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        for number in range(60):
            accept_one(service_class=list(ServiceClass)[number % 3])

        def fold_all() -> None:
            while fold(db, most=5):
                pass

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(fold_all) for _ in range(4)]:
                done.result(60)
        assert query("SELECT count(*) AS n FROM queue_changes") == [{"n": 0}]
        assert counts(read_backlog(db)) == counted(query)

    def test_what_came_to_nothing_is_forgotten(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        accept_one()
        request_cancel(db, tenant, accept_one(queue="other@1"))
        fold(db)
        assert forget_empty(db) == 1
        assert [share.queue for share in read_backlog(db).shares] == [QUEUE]


class TestRates:
    def test_an_old_rate_is_not_known(self, db: Database, query: Query) -> None:
        measure(db, 1.0, 10.0)
        measure(db, 5.0, 50.0)
        measure(db, 7.0, 70.0, "other@1")
        query(
            "UPDATE queue_rates SET measured_at = now() - make_interval(secs => :s) WHERE queue = 'other@1'",
            s=KNOWN_FOR_S,
        )
        assert read_backlog(db).rates == {QUEUE: Rate(5.0, 50.0)}

    def test_a_tenant_has_its_fair_share_of_the_drain(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne
    ) -> None:
        assert read_backlog(db).drain_rate() is None
        measure(db, 6.0, 60.0)
        measure(db, 3.0, 30.0, "other@1")
        accept_one()
        accept_one(tenant_id=other_tenant)
        found = read_backlog(db)
        assert found.drain_rate() == Rate(9.0, 90.0)
        assert found.drain_rate(tenant_id=tenant) == Rate(3.0, 30.0)
        assert found.drain_rate(tenant_id="nobody") is None


class TestPausing:
    @pytest.fixture(autouse=True)
    def queue(self, accept_one: AcceptOne) -> None:
        accept_one(announce=False)

    def test_a_paused_queue_starts_nothing_and_goes_on_where_it_was(
        self, db: Database, tenant: str, accept_one: AcceptOne
    ) -> None:
        hinted = take_waiting(db, QUEUE, 1)
        elsewhere = accept_one(queue="other@1")
        pause(db, tenant, QUEUE, actor="key_1")
        later = accept_one()
        assert claim(db, "worker", QUEUE, hinted, 60) == {}
        assert get(db, tenant, later).announced_at is None
        assert take_waiting(db, QUEUE, 9) == []
        resume(db, tenant, QUEUE, actor="key_1")
        # The worker that took the hint dropped it, so it is given again at once.
        assert take_waiting(db, QUEUE, 9) == [*hinted, later]
        assert get(db, tenant, elsewhere).announced_at is not None

    def test_it_is_written_down_once(self, db: Database, tenant: str) -> None:
        for _ in range(2):
            pause(db, tenant, QUEUE, actor="key_1")
        for _ in range(2):
            resume(db, tenant, QUEUE, actor="key_2")
        entries = [(entry.action, entry.resource, entry.actor) for entry in list_entries(db, tenant)]
        assert entries[:2] == [("queue.resumed", QUEUE, "key_2"), ("queue.paused", QUEUE, "key_1")]
        assert sum(action.startswith("queue.") for action, *_ in entries) == 2

    def test_a_queue_that_is_not_there_cannot_be_paused(self, db: Database, tenant: str) -> None:
        for change in (pause, resume):
            with pytest.raises(NotFound, match="no queue 'tiny@2'"):
                change(db, tenant, "tiny@2", actor="key_1")


class TestViews:
    def test_everybody_s_jobs_or_one_tenant_s(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        accept_one(cost_tokens=100)
        oldest = accept_one(tenant_id=other_tenant, cost_tokens=50, service_class=ServiceClass.BATCH, announce=False)
        query("UPDATE jobs SET created_at = now() - interval '90 s' WHERE id = :id", id=oldest)
        measure(db, 2.0, 20.0)
        (whole,) = view_queues(db, read_backlog(db), tenant_id=None)
        assert (whole.name, whole.queued, whole.announced) == (QUEUE, Load(2, 150), 1)
        assert whole.by_class[ServiceClass.BATCH] == Load(1, 50)
        assert whole.oldest_age_s is not None
        assert 90 <= whole.oldest_age_s < 150
        assert (whole.paused_at, whole.rate) == (None, Rate(2.0, 20.0))
        (own,) = view_queues(db, read_backlog(db), tenant_id=tenant)
        assert (own.queued, own.announced) == (Load(1, 100), 1)
        assert own.oldest_age_s is not None
        assert own.oldest_age_s < 60
        (nobody,) = view_queues(db, read_backlog(db), tenant_id="nobody")
        assert (nobody.queued, nobody.oldest_age_s) == (Load(), None)

    def test_a_queue_by_its_name(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        accept_one()
        accept_one(queue="other@1")
        pause(db, tenant, "other@1", actor="key_1")
        (found,) = view_queues(db, read_backlog(db), tenant_id=None, name="other@1")
        assert (found.name, found.paused_by) == ("other@1", "key_1")
        assert found.paused_at is not None
        with pytest.raises(NotFound, match="no queue"):
            view_queues(db, read_backlog(db), tenant_id=None, name="third@1")


def positions(db: Database, tenant: str, job_ids: list[str]) -> list[int | None]:
    backlog = read_backlog(db)
    places = [find_position(db, backlog, get(db, tenant, job_id)) for job_id in job_ids]
    return [place and place.position for place in places]


class TestPlaces:
    def test_positions_are_those_in_which_jobs_are_announced(
        self, db: Database, tenant: str, accept_one: AcceptOne
    ) -> None:
        flying = [accept_one(), accept_one()]
        batch = accept_one(service_class=ServiceClass.BATCH, announce=False)
        last = accept_one(priority=9, announce=False)
        urgent = accept_one(priority=0, announce=False)
        interactive = accept_one(service_class=ServiceClass.INTERACTIVE, priority=9, announce=False)
        order = [*flying, interactive, urgent, last, batch]
        assert positions(db, tenant, order) == [1, 2, 3, 4, 5, 6]
        assert take_waiting(db, QUEUE, 10) == order[2:]

    def test_other_tenants_come_in_between_by_their_tokens(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne
    ) -> None:
        for _ in range(50):
            accept_one(tenant_id=other_tenant, cost_tokens=1000, announce=False)
        own = [accept_one(cost_tokens=4000) for _ in range(4)]
        assert positions(db, tenant, own) == [1, 1 + 1 + 4, 1 + 2 + 8, 1 + 3 + 12]

    def test_other_queues_do_not_count(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        accept_one(queue="other@1")
        assert positions(db, tenant, [accept_one()]) == [1]

    def test_a_job_that_is_not_queued_has_none(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        job_id = accept_one()
        claim(db, "worker", QUEUE, [job_id], 60)
        assert positions(db, tenant, [job_id]) == [None]

    def test_far_back_is_not_counted_out(
        self, db: Database, tenant: str, accept_one: AcceptOne, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backlogs, "MAX_AHEAD", 2)
        ids = [accept_one(announce=False) for _ in range(4)]
        assert positions(db, tenant, ids) == [1, 2, None, None]

    def test_the_start_is_estimated_by_the_measured_rate_or_not_at_all(
        self, db: Database, tenant: str, accept_one: AcceptOne
    ) -> None:
        ids = [accept_one(announce=False, cost_tokens=100) for _ in range(4)]

        def place() -> tuple[Backlog, QueuePosition]:
            backlog = read_backlog(db)
            found = find_position(db, backlog, get(db, tenant, ids[-1]))
            assert found is not None
            return backlog, found

        assert place()[1] == QueuePosition(position=4, starts_at=None)
        measure(db, 1.0, 10.0)
        backlog, found = place()
        assert found.starts_at is not None
        assert (found.starts_at - backlog.at).total_seconds() == pytest.approx(30)
        pause(db, tenant, QUEUE, actor="key_1")
        assert place()[1].starts_at is None


class TestDeadlines:
    def wait_s(self, db: Database, make_job: MakeJob, deadline_s: float, **changes: Any) -> float | None:
        job = make_job(deadline_s=deadline_s, cost_tokens=100, **changes)
        return too_long_a_wait_s(db, read_backlog(db), job)

    def test_without_a_measured_rate_every_job_may_try(
        self, db: Database, accept_one: AcceptOne, make_job: MakeJob
    ) -> None:
        accept_one(announce=False, deadline_s=1.0, cost_tokens=1_000_000)
        assert self.wait_s(db, make_job, 2.0) is None

    def test_what_is_ahead_in_its_class_decides(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, make_job: MakeJob
    ) -> None:
        measure(db, 1.0, 10.0)
        for _ in range(10):
            accept_one(announce=False, cost_tokens=100)
        assert self.wait_s(db, make_job, 5000.0) is None, "all of it takes only 100 s"
        assert self.wait_s(db, make_job, 50.0) is None, "it has the earliest deadline of its tenant"
        assert self.wait_s(db, make_job, 50.0, priority=9) == pytest.approx(100)
        assert self.wait_s(db, make_job, 50.0, priority=9, tenant_id=other_tenant) is None, "a fair share comes first"
        assert self.wait_s(db, make_job, 50.0, service_class=ServiceClass.INTERACTIVE) is None
        assert self.wait_s(db, make_job, 50.0, service_class=ServiceClass.BATCH) == pytest.approx(100)
        assert self.wait_s(db, make_job, 150.0, service_class=ServiceClass.BATCH) is None

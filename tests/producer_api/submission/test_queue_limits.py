"""The highest age of the cached queue count that decides whether a job is accepted."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from headrace.producer_api.submission import queue_limits
from headrace.producer_api.submission.queue_limits import KEEP_FAR_S, KEEP_S, QueueLimits
from headrace.store.db.database import Database
from headrace.store.errors import RateLimited
from headrace.store.ids import new_id
from headrace.store.jobs import jobs
from headrace.store.jobs.acceptance import Idempotency
from headrace.store.jobs.jobs import Accepted, NewJob
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.scheduling import backlog
from headrace.store.scheduling.backlog import Backlog
from headrace.store.settings import Settings


@pytest.fixture
def num_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per count of the queue."""
    counts: list[int] = []

    def counted(db: Database) -> Backlog:
        counts.append(1)
        return backlog.read_backlog(db)

    monkeypatch.setattr(queue_limits, "backlog", type("Counted", (), {"read_backlog": staticmethod(counted)}))
    return counts


@pytest.fixture
def enter(settings: Settings, db: Database, tenant: str) -> Callable[[int, Sequence[float]], list[bool]]:
    """Let one job after the other in, at these times, where so many may be queued; return which were let in."""

    def enter(most: int, times: Sequence[float]) -> list[bool]:
        clock = [0.0]
        one = QueueLimits(settings.model_copy(update={"max_queued_jobs": most}), db, clock=lambda: clock[0])
        outcomes = []
        for at in times:
            clock[0] = at
            try:
                one.accept(_job(tenant), lambda new: stored(db, new))
                outcomes.append(True)
            except RateLimited:
                outcomes.append(False)
        return outcomes

    return enter


def stored(db: Database, new: NewJob) -> Accepted:
    (outcome,) = jobs.accept(db, [new])
    assert isinstance(outcome, Accepted)
    return outcome


def _job(tenant_id: str) -> NewJob:
    return NewJob(
        id=new_id("job"),
        tenant_id=tenant_id,
        task="generate",
        model="tiny",
        model_version=1,
        queue="tiny@1",
        service_class=ServiceClass.STANDARD,
        priority=5,
        payload={},
        input_tokens=1,
        cost_tokens=10,
        metadata={},
        webhook=None,
        max_attempts=1,
        deadline_s=60,
        idempotency=None,
        announce=False,
    )


def test_far_from_full_nobody_waits_for_a_count(
    enter: Callable[[int, Sequence[float]], list[bool]], num_counts: list[int]
) -> None:
    assert enter(1000, [0, 1, 2, 0.9 * KEEP_FAR_S]) == [True] * 4
    assert len(num_counts) == 1
    assert enter(1000, [0, 1, 1.1 * KEEP_FAR_S]) == [True] * 3
    assert len(num_counts) == 1 + 2


def test_a_sixteenth_of_the_bound_is_far_from_it_and_no_more(
    enter: Callable[[int, Sequence[float]], list[bool]], num_counts: list[int]
) -> None:
    assert enter(32, [0, 0.1, 2 * KEEP_S, 4 * KEEP_S]) == [True] * 4
    assert len(num_counts) == 1 + 2, "the first two are a sixteenth"


def test_the_bound_is_kept_whatever_the_age(enter: Callable[[int, Sequence[float]], list[bool]]) -> None:
    assert enter(3, [0, 0, 2 * KEEP_S, 4 * KEEP_S, 6 * KEEP_S]) == [True] * 3 + [False] * 2


def test_what_is_replayed_takes_no_room(settings: Settings, db: Database, tenant: str) -> None:
    one = QueueLimits(settings.model_copy(update={"max_queued_jobs": 2}), db, clock=lambda: 0.0)
    sent = replace(_job(tenant), idempotency=Idempotency("/v1/jobs", "a-key", "a-body"))
    first, *again = [one.accept(replace(sent, id=new_id("job")), lambda new: stored(db, new)) for _ in range(3)]
    assert again == [Accepted(first.job_id, replayed=True, announced=False)] * 2
    other = one.accept(_job(tenant), lambda new: stored(db, new))
    assert not other.replayed, "one job is queued, and there is room for two"


def test_half_of_what_may_be_queued_is_left_by_batches(settings: Settings, db: Database, tenant: str) -> None:
    clock = [0.0]
    bounds = {"max_queued_jobs": 12, "max_queued_jobs_per_tenant": 8}
    one = QueueLimits(settings.model_copy(update=bounds), db, clock=lambda: clock[0])
    left = []
    for _ in range(6):
        left.append(one.slack(tenant))
        one.accept(_job(tenant), lambda new: stored(db, new))
        clock[0] += 2 * KEEP_S
    assert left == [4, 3, 2, 1, 0, 0]
    assert one.slack("another") == 0, "half of what all tenants may have queued is taken"
    full = settings.model_copy(update={"max_queued_tokens_per_tenant": 2 * 6 * 10})
    assert QueueLimits(full, db).slack(tenant) == 0, "half of the tokens are"
    assert QueueLimits(full, db).slack("another") > 0

"""The room of queues for new jobs: the limits, and the answers to callers over them. No services."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.producer_api.submission import queue_limits
from headrace.producer_api.submission.queue_limits import KEEP_S, QueueLimits
from headrace.store.errors import InvalidRequest, RateLimited
from headrace.store.jobs.acceptance import Idempotency
from headrace.store.jobs.jobs import Accepted
from headrace.store.scheduling.backlog import Backlog, Load, TenantBacklog
from headrace.store.scheduling.service_rate import Rate
from headrace.store.settings import Settings
from headrace.store.tenants.tenant_limits import Limits, RequestLimits
from tests.producer_api.submission.making import AT, told
from tests.refusals import Naming


def share(tenant_id: str, jobs: int, tokens: int) -> TenantBacklog:
    return TenantBacklog("tiny@1", tenant_id, 1, Load(jobs, tokens), Load())


def job(id_: str = "job_1", tenant_id: str = "acme", tokens: int = 10, **fields: Any) -> Any:
    """The parts of a new job that the limits look at."""
    given = {"task": "generate", "idempotency": None, "limits": None, "deadline_s": 60.0} | fields
    return SimpleNamespace(id=id_, tenant_id=tenant_id, queued_tokens=tokens, **given)


class Queue:
    """Limits of a queue whose snapshot and clock are the test's."""

    def __init__(self, patch: pytest.MonkeyPatch, *shares: TenantBacklog, rate: Rate | None = None, **most: int):
        self.now, self.num_reads = 1000.0, 0
        self.found = Backlog(shares, {} if rate is None else {"tiny@1": rate}, frozenset(), AT)
        self.wait_s: float | None = None

        def read(_: object) -> Backlog:
            self.num_reads += 1
            return self.found

        backlog = SimpleNamespace(read_backlog=read, too_long_a_wait_s=lambda *_: self.wait_s)
        patch.setattr(queue_limits, "backlog", backlog)
        patch.setattr(queue_limits, "is_known", lambda _, tenant_id, known: (tenant_id, known.key) == ("acme", "seen"))
        bounds = {
            "max_queued_jobs": 100,
            "max_queued_tokens": 1000,
            "max_queued_jobs_per_tenant": 10,
            "max_queued_tokens_per_tenant": 500,
        }
        settings = Settings(database_url="postgresql://x/y", redis_url="redis://x").model_copy(update=bounds | most)
        nothing: Any = None
        self.limits = QueueLimits(settings, nothing, clock=lambda: self.now)

    def accept(self, *jobs: Any, **named: Any) -> list[Any]:
        """Return the outcome of each job: what was stored, or the error."""

        def store(new: Any) -> Accepted:
            return Accepted(new.id, replayed=False, announced=False)

        outcomes: list[Any] = []
        for one in jobs:
            try:
                outcomes.append(self.limits.accept(one, store, **named))
            except (InvalidRequest, RateLimited) as error:
                outcomes.append(error)
        return outcomes


@pytest.mark.parametrize(
    ("shares", "tokens", "named"),
    [
        ([share("acme", 10, 0)], 1, "10 jobs"),
        ([share("acme", 9, 0), share("globex", 90, 0)], 1, None),
        ([share("acme", 9, 491)], 10, "500"),
        ([share("acme", 9, 490)], 10, None),
        ([share("globex", 100, 0)], 1, "queue"),
        ([share("globex", 1, 991)], 10, "queue"),
        ([share("globex", 1, 990)], 10, None),
    ],
)
def test_a_job_is_refused_over_the_limit_and_not_at_it(
    monkeypatch: pytest.MonkeyPatch, shares: list[TenantBacklog], tokens: int, named: str | None
) -> None:
    (outcome,) = Queue(monkeypatch, *shares).accept(job(tokens=tokens))
    if named is None:
        assert isinstance(outcome, Accepted)
    else:
        assert told(outcome) == (RateLimited, Naming(named), "queue_full", None)
        assert outcome.retry_after_s == 5.0, "no rate is known"


def test_jobs_since_the_snapshot_count(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, max_queued_jobs_per_tenant=2)
    outcomes = queue.accept(job("a"), job("b"), job("c"), job("d", "globex"))
    assert [isinstance(one, Accepted) for one in outcomes] == [True, True, False, True]
    assert not isinstance(queue.accept(job("e"))[0], Accepted)


def failing(_job: object) -> Any:
    """Store nothing: divide by zero."""
    return 1 / 0


def test_what_failed_or_was_replayed_gives_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, max_queued_jobs_per_tenant=1)
    replayed = queue.limits.accept(job(), lambda _: Accepted("job_0", replayed=True, announced=False))
    assert replayed.job_id == "job_0"
    with pytest.raises(ZeroDivisionError):
        queue.limits.accept(job(), failing)
    assert isinstance(queue.accept(job())[0], Accepted)
    assert isinstance(queue.accept(job("other"))[0], RateLimited)


def test_a_repeated_key_needs_no_room_and_another_does(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, share("acme", 10, 0), share("globex", 10, 0))
    seen, new = (Idempotency("/v1/jobs", key, "body") for key in ("seen", "new"))
    outcomes = queue.accept(job("a", idempotency=seen), job("b", idempotency=new), job("c", "globex", idempotency=seen))
    assert [isinstance(one, Accepted) for one in outcomes] == [True, False, False]
    with pytest.raises(RateLimited) as full:
        queue.limits.accept(job("d"), failing)
    assert full.value.code == "queue_full", "nothing is stored"


def test_more_tokens_than_may_ever_be_queued_are_a_bad_request(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch)
    too_many = InvalidRequest, Naming("501 tokens"), "invalid_value", "sampling.max_tokens"
    assert told(queue.accept(job(tokens=501))[0]) == too_many
    assert isinstance(queue.accept(job(tokens=500))[0], Accepted)
    own = RequestLimits(tenant=Limits(queued_tokens=2000), key=Limits(queued_tokens=1))
    assert isinstance(queue.accept(job("b", "globex", tokens=1001, limits=own))[0], InvalidRequest)
    found = queue.accept(job("c", "globex", tokens=500, limits=replace(own, tenant=Limits(queued_tokens=499))))
    assert isinstance(found[0], InvalidRequest)


def test_a_deadline_that_cannot_be_met_is_told_if_its_owner_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch)
    queue.wait_s = 90.4
    (refused,) = queue.accept(job("a", deadline_s=1.5), has_deadline=True)
    (other,) = queue.accept(job("b"))
    assert told(refused) == (InvalidRequest, Naming("90 s", "1.5 s"), "deadline_unreachable", "deadline_ms")
    assert isinstance(other, Accepted)


def test_refused_callers_come_back_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs a second are served, of which one tenant has one queue of two tenants: one a second."""
    shares = share("acme", 12, 0), share("globex", 1, 0)
    queue = Queue(monkeypatch, *shares, rate=Rate(2.0, 200.0))
    waits = [queue.accept(job(str(number)))[0].retry_after_s for number in range(3)]
    assert waits == [3.0, 4.0, 5.0], "three are too many, and each caller takes a place"
    queue.now += 2.0
    assert queue.accept(job("later"))[0].retry_after_s == 4.0
    slow = Queue(monkeypatch, *shares, rate=Rate(0.002, 200.0))
    assert slow.accept(job())[0].retry_after_s == 120.0
    by_tokens = Queue(monkeypatch, share("acme", 1, 500), rate=Rate(2.0, 4.0))
    assert by_tokens.accept(job(tokens=10))[0].retry_after_s == 2.5
    stopped = Queue(monkeypatch, *shares, rate=Rate(0.0, 0.0))
    assert stopped.accept(job())[0].retry_after_s == 120.0


def test_half_of_each_limit_is_left_to_lines_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, share("acme", 2, 0), share("globex", 40, 0))
    assert (queue.limits.slack("acme"), queue.limits.slack("initech")) == (3, 5)
    busy = Queue(monkeypatch, share("globex", 47, 499))
    assert busy.limits.slack("initech") == 3
    assert Queue(monkeypatch, share("globex", 47, 500)).limits.slack("initech") == 0
    assert Queue(monkeypatch, share("acme", 1, 250)).limits.slack("acme") == 0
    assert Queue(monkeypatch, share("acme", 9, 0)).limits.slack("acme") == 0, "never below nothing"


def test_a_snapshot_is_used_for_a_quarter_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch)
    for at in (0.0, KEEP_S - 0.01, KEEP_S, KEEP_S + 0.01):
        queue.now = 1000.0 + at
        queue.limits.backlog()
    assert queue.num_reads == 2

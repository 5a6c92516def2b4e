"""What the Live page says needs attention: which worker is sick, why jobs wait, which tenant floods."""

from typing import Any

import httpx2
import pytest
import redis

from producer_api.console import live_view
from producer_api.console.live_objects import LiveQueue, TenantLoad
from store.redis.live_workers import KEEP_S, SnapshotPublisher, WorkerSnapshot

_SNAPSHOT: dict[str, Any] = {
    "id": "celery@mill:7:boot",
    "queue": "tiny@1",
    "engine": None,
    "slots": 4,
    "running": 1,
    "waiting": 0,
    "free_blocks": 30,
    "total_blocks": 40,
    "lease_s": 10,
    "lease_age_s": 1.0,
    "quiet_s": 0.1,
    "jobs": [],
}
_JOB = {
    "id": "job_a",
    "tenant_id": "ten_a",
    "class_rank": 1,
    "attempt": 1,
    "age_s": 1.0,
    "input_tokens": 5,
    "output_tokens": 2,
    "max_tokens": 9,
}


def kinds(
    workers: list[tuple[WorkerSnapshot, float]], queue: dict[str, Any] | None = None, tenant_id: str | None = None
) -> list[str]:
    queues = [] if queue is None else [_queue(**queue)]
    found = live_view.live_workers(workers, tenant_id)
    state = live_view.live_state(0.0, queues, found, [], sees_all=tenant_id is None)
    return [problem.kind for problem in state.problems]


def _queue(jobs: int = 30, **changes: Any) -> LiveQueue:
    load = {"jobs": jobs, "tokens": 100 * jobs}
    by_class = {"interactive": load, "standard": {"jobs": 0, "tokens": 0}, "batch": {"jobs": 0, "tokens": 0}}
    fields = {
        "share": "all",
        "workers": 1,
        "running": 4,
        "announced": 0,
        "oldest_age_s": 60.0,
        "paused_at": None,
        "rate": None,
        "host": None,
        "scaling": None,
    }
    return LiveQueue.model_validate(
        {"name": "tiny@1", "queued": load, "by_class": by_class, "clears_in_s": 9.0, "tenants": [], **fields, **changes}
    )


def worker(num_jobs: int = 1, **changes: Any) -> WorkerSnapshot:
    return WorkerSnapshot.model_validate({**_SNAPSHOT, "jobs": [_JOB] * num_jobs, **changes})


@pytest.mark.parametrize(
    ("changes", "age_s", "kind"),
    [
        ({}, 1.0, []),
        ({}, 6.0, ["worker_late"]),
        ({"lease_age_s": 7.0}, 1.0, ["worker_late"]),
        ({"quiet_s": 16.0}, 1.0, ["worker_stalled"]),
        ({"quiet_s": None}, 1.0, []),
        ({"quiet_s": 16.0}, 16.0, ["worker_lost"]),
    ],
)
def test_a_sick_worker_is_named(changes: dict[str, Any], age_s: float, kind: list[str]) -> None:
    assert kinds([(worker(**changes), age_s)]) == kind


def test_the_lease_of_a_silent_worker_grows_older() -> None:
    (found,) = live_view.live_workers([(worker(), 12.0)], None)
    assert found.lease_age_s == 13.0


@pytest.mark.parametrize(
    ("queue", "workers", "kind"),
    [
        ({}, [worker(4)], ["full"]),
        ({}, [worker(1, free_blocks=1)], ["full"]),
        ({}, [worker(4), worker(1)], ["not_taken"]),
        ({}, [worker(4), worker(1, is_reserved=True)], ["full"]),
        ({}, [worker(7, slots=8), worker(4)], ["full"]),
        ({}, [worker(6, slots=8)], ["not_taken"]),
        ({"oldest_age_s": 10.0}, [worker(4), worker(1)], []),
        ({"oldest_age_s": 1.0}, [worker(4)], []),
        ({"jobs": 0, "oldest_age_s": None}, [worker(4)], []),
        ({"paused_at": 5}, [worker(1)], ["paused"]),
        ({"workers": 0}, [], ["no_worker"]),
        ({"workers": 0, "host": {"loads_in_s": 5, "reason": None}}, [], []),
        ({"workers": 0, "host": {"loads_in_s": None, "reason": "it is too large"}}, [], ["no_worker"]),
        ({"workers": 0, "jobs": 0}, [], []),
    ],
)
def test_the_cause_of_a_wait_is_named(queue: dict[str, Any], workers: list[WorkerSnapshot], kind: list[str]) -> None:
    assert kinds([(one, 1.0) for one in workers], queue) == kind


def test_a_sick_worker_has_no_room_for_the_jobs_that_wait() -> None:
    assert kinds([(worker(1), 6.0), (worker(4), 1.0)], {}) == ["worker_late", "full"]
    assert kinds([(worker(1), 6.0)], {}) == ["worker_late", "no_worker"]


def test_a_flooding_tenant_is_named_if_it_has_many_jobs_and_most_of_the_tokens() -> None:
    def load(jobs: int, tokens: int) -> TenantLoad:
        return TenantLoad(id="ten_a", name="acme", jobs=jobs, tokens=tokens)

    taken = [(worker(1), 1.0)]
    assert kinds(taken, {"oldest_age_s": 1.0, "tenants": [load(25, 1600)]}) == ["flood"]
    assert kinds(taken, {"oldest_age_s": 1.0, "tenants": [load(25, 1400)]}) == []
    assert kinds(taken, {"oldest_age_s": 1.0, "tenants": [load(5, 1600)]}) == []


def test_a_tenant_learns_nothing_of_others_load() -> None:
    assert kinds([(worker(4), 1.0)], {}, tenant_id="ten_b") == []


def test_a_worker_that_went_silent_stays_and_is_told_as_lost(api: httpx2.Client, redis_client: redis.Redis) -> None:
    SnapshotPublisher(redis_client).publish(worker(2, kept_s=KEEP_S), None)
    redis_client.pexpire("headrace:live:worker:celery@mill:7:boot", 1000 * (KEEP_S - 20))
    state = api.get("/v1/live").json()["state"]
    assert [one["health"] for one in state["workers"]] == ["lost"]
    (problem,) = state["problems"]
    assert (problem["kind"], problem["worker"]) == ("worker_lost", "celery@mill:7:boot")
    assert problem["text"].startswith("worker mill · 7 of tiny@1 is lost: no heartbeat for ")

"""What the Live page says needs attention: which worker is sick, why jobs wait, which tenant floods."""

from typing import Any

import httpx2
import pytest
import redis

from headrace.features.console import live_view
from headrace.features.console.live_objects import LiveProblem, LiveQueue, TenantLoad
from headrace.store.redis.live_workers import KEEP_S, SnapshotPublisher, WorkerSnapshot
from tests.refusals import Naming

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


def problems(
    workers: list[tuple[WorkerSnapshot, float]], queue: dict[str, Any] | None, tenant_id: str | None = None
) -> list[LiveProblem]:
    queues = [] if queue is None else [_queue(**queue)]
    found = live_view.live_workers(workers, tenant_id)
    return live_view.live_state(0.0, queues, found, [], sees_all=tenant_id is None).problems


def kinds(
    workers: list[tuple[WorkerSnapshot, float]], queue: dict[str, Any] | None = None, tenant_id: str | None = None
) -> list[str]:
    return [problem.kind for problem in problems(workers, queue, tenant_id)]


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
        "clears_in_s": 9.0,
        "tenants": [],
    }
    return LiveQueue.model_validate({"name": "tiny@1", "queued": load, "by_class": by_class, **fields, **changes})


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

    def told(jobs: int, tokens: int, *others: TenantLoad) -> list[str]:
        return kinds([(worker(1), 1.0)], {"oldest_age_s": 1.0, "tenants": [load(jobs, tokens), *others]})

    other = TenantLoad(id="ten_b", name=None, jobs=1, tokens=1)
    assert told(25, 1600, other) == ["flood"]
    assert told(25, 1400, other) == []
    assert told(5, 1600, other) == []
    assert told(25, 1600) == [], "the jobs of one tenant alone keep no other tenant waiting"


def test_a_queue_clears_in_no_known_time_while_none_of_its_workers_is_well() -> None:
    def clears(*ages_s: float) -> float | None:
        found = live_view.live_workers([(worker(), age_s) for age_s in ages_s], None)
        return live_view.live_state(0.0, [_queue()], found, [], sees_all=True).queues[0].clears_in_s

    assert (clears(), clears(1.0), clears(6.0, 1.0), clears(6.0, 16.0)) == (9.0, 9.0, 9.0, None)


WAIT = ("30 jobs of tiny@1", " 60 s")
HELD = "mill · 7 of tiny@1"


@pytest.mark.parametrize(
    ("queue", "workers", "named"),
    [
        ({"paused_at": 5}, [], [(*WAIT, "paused")]),
        ({"workers": 0}, [], [(*WAIT, "no worker")]),
        (
            {"workers": 0, "host": {"loads_in_s": None, "reason": "it is too large"}},
            [],
            [(*WAIT, "no worker", "no model host", "too large")],
        ),
        (
            {"oldest_age_s": 89.4},
            [(worker(4), 1.0)],
            [("30 jobs of tiny@1", " 89 s", "slots", " 9 s")],
        ),
        (
            {"jobs": 1, "oldest_age_s": 90.0, "clears_in_s": None},
            [(worker(free_blocks=2), 1.0), (worker(is_reserved=True), 1.0)],
            [("1 job of tiny@1", " 2 min", "run alone", "KV cache")],
        ),
        (
            {"jobs": 1200, "oldest_age_s": 5399.0},
            [(worker(), 1.0)],
            [("1,200 jobs of tiny@1", " 90 min", "no dispatcher")],
        ),
        (
            {"oldest_age_s": 5400.0},
            [(worker(), 5.1)],
            [
                (HELD, "late", " 5 s", "leases", " 6 s", "1 job"),
                ("30 jobs of tiny@1", " 2 h", "none of"),
            ],
        ),
        (
            None,
            [(worker(2, lease_age_s=None), 7.0), (worker(0, id="alone", quiet_s=100.0), 1.0), (worker(), 16.0)],
            [
                (HELD, "late", " 7 s", "2 jobs"),
                ("worker alone of tiny@1", "stalled", " 2 min", "0 jobs"),
                (HELD, "lost", " 16 s", "1 job", "others"),
            ],
        ),
        (
            None,
            [(worker(2), 16.0), (worker(id="celery@mill:9:boot", queue="other@1"), 1.0)],
            [(HELD, "lost", " 16 s", "2 jobs", "no other worker")],
        ),
        (
            {"workers": 0, "host": {"loads_in_s": 5, "reason": None}, "tenants": [("acme", 20, 1501), ("b", 10, 1499)]},
            [],
            [("acme", "20 of the 30", "tiny@1")],
        ),
        (
            {"oldest_age_s": 1.0, "tenants": [(None, 25, 1600), ("globex", 5, 1400)]},
            [(worker(), 1.0)],
            [("ten_a", "25 of the 30", "tiny@1")],
        ),
    ],
)
def test_a_problem_names_its_cause_and_figures(
    queue: dict[str, Any] | None, workers: list[tuple[WorkerSnapshot, float]], named: list[tuple[str, ...]]
) -> None:
    if queue is not None:
        tenants = queue.get("tenants", [])
        loads = [TenantLoad(id="ten_a", name=name, jobs=jobs, tokens=tokens) for name, jobs, tokens in tenants]
        queue = queue | {"tenants": loads}
    assert [problem.text for problem in problems(workers, queue)] == [Naming(*things) for things in named]


def loaded(jobs: int, tokens: int) -> TenantLoad:
    return TenantLoad(id="ten_a", name=None, jobs=jobs, tokens=tokens)


@pytest.mark.parametrize(
    ("queue", "workers"),
    [
        ({"oldest_age_s": 5.0}, [(worker(4), 1.0)]),
        ({"oldest_age_s": 20.0}, [(worker(1), 1.0)]),
        ({"oldest_age_s": 20.0}, [(worker(37, slots=40), 1.0)]),
        ({"oldest_age_s": 20.0}, [(worker(1, slots=2), 1.0)]),
        ({"oldest_age_s": 20.0}, [(worker(1, free_blocks=0, total_blocks=0), 1.0)]),
        ({"oldest_age_s": 1.0, "tenants": [loaded(25, 1500), loaded(5, 1500)]}, [(worker(), 1)]),
        ({"oldest_age_s": 1.0, "tenants": [loaded(19, 1600), loaded(5, 1400)]}, [(worker(), 1)]),
        (None, [(worker(lease_age_s=2.5, quiet_s=15.0), 5.0)]),
    ],
)
def test_a_figure_at_its_limit_is_no_problem(
    queue: dict[str, Any] | None, workers: list[tuple[WorkerSnapshot, float]]
) -> None:
    assert kinds(workers, queue) == []


def test_the_room_of_a_worker_counts_for_its_own_queue() -> None:
    other = worker(1, id="celery@mill:8:boot", queue="other@1")
    assert kinds([(worker(4), 1.0), (other, 1.0)], {}) == ["full"]
    assert kinds([(worker(38, slots=40), 1.0)], {}) == ["full"]
    assert kinds([(worker(4), 1.0), (worker(1), 16.0)], {}) == ["worker_lost", "full"], "a lost one has no room"
    assert kinds([(worker(1), 15.0)], None) == ["worker_late"], "it is lost later than that"


def test_a_tenant_learns_nothing_of_others_load() -> None:
    assert kinds([(worker(4), 1.0)], {}, tenant_id="ten_b") == []


def test_a_worker_that_went_silent_stays_and_is_told_as_lost(api: httpx2.Client, redis_client: redis.Redis) -> None:
    SnapshotPublisher(redis_client).publish(worker(2, kept_s=KEEP_S), None)
    redis_client.pexpire("headrace:live:worker:celery@mill:7:boot", 1000 * (KEEP_S - 20))
    state = api.get("/v1/live").json()["state"]
    assert [one["health"] for one in state["workers"]] == ["lost"]
    (problem,) = state["problems"]
    assert (problem["kind"], problem["worker"]) == ("worker_lost", "celery@mill:7:boot")
    assert HELD in problem["text"]

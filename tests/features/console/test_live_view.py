"""The live figures: those of an operator, those of one tenant, and the seconds that a figure covers."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from headrace.features.console import live_view
from headrace.features.console.live_objects import HistoryPoint, QueueSpeed
from headrace.store.hosts.host_reports import HostOutlook, HostReport
from headrace.store.redis.live_workers import SnapshotJob, WorkerSnapshot, WorkerTick
from headrace.store.scheduling.backlog import Backlog, Load, TenantBacklog
from headrace.store.scheduling.queues import QueueView
from headrace.store.scheduling.service_rate import Rate

AT = datetime(2026, 1, 2, tzinfo=UTC)
JOB = {
    "id": "job_a",
    "class_rank": 2,
    "attempt": 3,
    "age_s": 1.5,
    "input_tokens": 5,
    "output_tokens": 7,
    "max_tokens": 20,
    "progress": 0.25,
}
SNAPSHOT = WorkerSnapshot(
    id="w:1:boot",
    queue="m@1",
    engine="vllm",
    slots=8,
    running=2,
    waiting=3,
    free_blocks=10,
    total_blocks=40,
    lease_s=10,
    lease_age_s=1.5,
    quiet_s=0.5,
    is_reserved=True,
    jobs=[SnapshotJob(tenant_id="a", **JOB), SnapshotJob(tenant_id="b", **{**JOB, "id": "job_b"})],
)


def share(queue: str, tenant_id: str, jobs: int, tokens: int, class_rank: int = 1) -> TenantBacklog:
    return TenantBacklog(queue, tenant_id, class_rank, queued=Load(jobs, tokens), announced=Load())


def test_a_tenant_sees_its_own_jobs_and_not_the_load_of_a_worker() -> None:
    found = [(SNAPSHOT, 2.0)]
    (whole,) = live_view.live_workers(found, None)
    assert whole.model_dump() == {
        "id": "w:1:boot",
        "queue": "m@1",
        "engine": "vllm",
        "seen_age_s": 2.0,
        "slots": 8,
        "running": 2,
        "waiting": 3,
        "free_blocks": 10,
        "total_blocks": 40,
        "lease_s": 10.0,
        "lease_age_s": 3.5,
        "quiet_s": 0.5,
        "is_reserved": True,
        "health": "ok",
        "jobs": [{**JOB, "tenant": "a"}, {**JOB, "id": "job_b", "tenant": "b"}],
    }
    hidden = dict.fromkeys(("running", "waiting", "free_blocks", "total_blocks", "quiet_s"))
    (own,) = live_view.live_workers(found, "b")
    assert own.model_dump() == whole.model_dump() | hidden | {"jobs": [{**JOB, "id": "job_b", "tenant": None}]}


def test_the_state_has_hosts_and_hits_of_the_cache_for_an_operator_alone() -> None:
    host = HostReport(name="mill", started_at=AT, budget_bytes=9)

    def state(*, sees_all: bool) -> dict[str, Any]:
        found = live_view.live_state(
            5.5, [], [], ["redis", "postgres", "redis"], hosts=[host], cache_hit_rate=0.12345, sees_all=sees_all
        )
        return found.model_dump(include={"at", "share", "missing", "hosts", "cache_hit_rate"})

    whole = state(sees_all=True)
    assert [one["name"] for one in whole.pop("hosts")] == ["mill"]
    assert whole == {"at": 5.5, "share": "all", "missing": ["postgres", "redis"], "cache_hit_rate": 0.123}
    assert state(sees_all=False) == whole | {"share": "own", "hosts": [], "cache_hit_rate": None}


def test_a_queue_names_its_five_largest_tenants_for_an_operator_alone() -> None:
    shares = [share("m@1", f"ten_{n}", jobs=n, tokens=10 * n) for n in range(1, 6)]
    shares += [share("m@1", "ten_0", 9, 50), share("m@1", "ten_1", 1, 100, class_rank=2), share("n@1", "ten_9", 1, 999)]
    backlog = Backlog(tuple(shares), {"m@1": Rate(1.0, 7.0)}, frozenset(), AT)
    queue = QueueView("m@1", 1, 1, {"standard": Load(25, 300)}, 0, 2.0, None, None, None)
    host = HostReport(name="mill", started_at=AT, budget_bytes=9, outlooks=(HostOutlook(queue="m@1", in_s=4.0),))
    (whole,) = live_view.live_queues([queue], backlog, {"ten_1": "acme"}, [host], sees_all=True)
    assert [(one.id, one.name, one.jobs, one.tokens) for one in whole.tenants] == [
        ("ten_1", "acme", 2, 110),
        ("ten_0", None, 9, 50),
        ("ten_5", None, 5, 50),
        ("ten_4", None, 4, 40),
        ("ten_3", None, 3, 30),
    ]
    assert (whole.share, whole.clears_in_s) == ("all", 42.857), "300 tokens at 7 a second"
    idle = replace(queue, workers=0)
    (unserved,) = live_view.live_queues([idle], backlog, {}, [host], sees_all=True)
    assert unserved.model_dump()["host"] == {"loads_in_s": 4.0, "reason": None}
    assert unserved.clears_in_s is None, "the rate is that of a worker that has gone"
    (own,) = live_view.live_queues([queue], backlog, {"ten_1": "acme"}, [host], sees_all=False)
    assert (own.share, own.tenants) == ("own", [])
    assert live_view.largest_tenants(backlog) == {"ten_1", "ten_0", "ten_5", "ten_4", "ten_3", "ten_9"}


def tick(at: float, tokens: int = 0, times: tuple[float, ...] = (), slots: int = 3, queue: str = "m@1") -> Any:
    return at, WorkerTick(
        worker="w", queue=queue, tokens={"a": tokens}, first_token_ms={"a": list(times)}, running=1, slots=slots
    )


def test_a_point_covers_its_five_seconds_and_first_tokens_of_thirty() -> None:
    ticks = [tick(1004.9, 5, (10.0, 30.0)), tick(1005.0, 8, (20.0,), slots=0)]
    points = live_view.history(ticks, None, 1045.0).points
    assert points[:2] == [
        HistoryPoint(at=1005.0, tokens_per_s=1.0, first_token_p50_ms=10.0, first_token_p95_ms=30.0, occupancy=0.333),
        HistoryPoint(at=1010.0, tokens_per_s=1.6, first_token_p50_ms=20.0, first_token_p95_ms=30.0, occupancy=None),
    ]
    later = [(point.at, point.first_token_p50_ms, point.first_token_p95_ms) for point in points[5:]]
    # The first tick leaves at 1035.0, the second, at the start of the 30 s, is still there.
    assert later == [(1030.0, 20.0, 30.0), (1035.0, 20.0, 20.0), (1040.0, None, None), (1045.0, None, None)]


def test_the_history_ends_with_the_last_whole_step_and_has_ten_minutes() -> None:
    points = live_view.history([tick(2.0, 5), tick(900.0, 10), tick(999.0, 10)], None, 999.9).points
    assert (points[0].at, points[-1].at, len(points)) == (400.0, 995.0, 120)
    assert {point.at: point.tokens_per_s for point in points if point.tokens_per_s} == {905.0: 2.0}
    assert live_view.history([], None, 999.9).points == []


def test_the_speeds_are_those_of_the_last_minute_by_queue() -> None:
    ticks = [tick(940.0, 600), tick(941.0, 90, (9.0, 4.0, 6.0), queue="n@1"), tick(950.0, 30, (2.0,))]
    assert live_view.history(ticks, None, 1000.0).speeds == [
        QueueSpeed(queue="m@1", tokens_per_s=0.5, first_token_p50_ms=2.0, first_token_p95_ms=2.0),
        QueueSpeed(queue="n@1", tokens_per_s=1.5, first_token_p50_ms=6.0, first_token_p95_ms=9.0),
    ]
    (own, other) = live_view.history(ticks, "b", 1000.0).speeds
    assert (own.tokens_per_s, own.first_token_p95_ms, other.tokens_per_s) == (0.0, None, 0.0)

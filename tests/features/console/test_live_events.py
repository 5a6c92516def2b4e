"""Live events: every tenant's figures for a key that sees all, its own for any other, and one reading for all."""

import time
from contextlib import ExitStack
from typing import Any

import httpx2
import redis

from headrace.features.console import live_view
from headrace.features.console.live_poll import PERIOD_S
from headrace.store.db.database import Database
from headrace.store.redis.live_workers import TICK_S, SnapshotJob, SnapshotPublisher, WorkerSnapshot, WorkerTick
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.producer_api.calling import LiveStream, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.serving import serving


def snapshot(*jobs: SnapshotJob) -> WorkerSnapshot:
    return WorkerSnapshot(
        id="host:1:boot",
        queue="tiny@1",
        engine=None,
        slots=8,
        running=len(jobs),
        waiting=0,
        free_blocks=10,
        total_blocks=40,
        lease_s=10,
        lease_age_s=1.5,
        jobs=list(jobs),
    )


def held(job_id: str, tenant_id: str) -> SnapshotJob:
    return SnapshotJob(
        id=job_id, tenant_id=tenant_id, class_rank=1, attempt=1, age_s=2, input_tokens=5, output_tokens=7, max_tokens=20
    )


def events(client: httpx2.Client, stack: ExitStack) -> LiveStream:
    response = stack.enter_context(client.stream("GET", "/v1/live", headers={"Accept": "text/event-stream"}))
    assert response.status_code == 200
    return LiveStream(response)


def test_a_key_sees_its_own_share_and_queues_admin_sees_all(
    db: Database, api: httpx2.Client, make_client: MakeClient, tenant: str, redis_client: redis.Redis
) -> None:
    operator = api  # its key has every scope but admin
    other = api_keys.create_tenant(db, "globex")
    mine = make_client(api_keys.create_key(db, other, "reader", ["jobs:read", "jobs:write"], actor="tests"))
    submit(operator)
    submit(operator)
    submit(mine)
    jobs = [held("job_a", tenant), held("job_b", "ten_other")]
    tick = WorkerTick(
        worker="host:1:boot", queue="tiny@1", tokens={tenant: 50}, first_token_ms={tenant: [120.0]}, running=2, slots=8
    )
    SnapshotPublisher(redis_client).publish(snapshot(*jobs), tick)
    with ExitStack() as stack:
        all_of_it = events(operator, stack).until("live")[-1].data
        own = events(mine, stack).until("live")[-1].data
    once = operator.get("/v1/live").json()
    assert [job["id"] for job in once["state"]["workers"][0]["jobs"]] == ["job_a", "job_b"]
    (queue,) = all_of_it["queues"]
    assert (all_of_it["share"], queue["queued"]["jobs"], queue["by_class"]["standard"]["jobs"]) == ("all", 3, 3)
    assert {load["name"]: load["jobs"] for load in queue["tenants"]} == {"acme": 2, "globex": 1}
    (worker,) = all_of_it["workers"]
    assert [(job["id"], job["tenant"]) for job in worker["jobs"]] == [("job_a", tenant), ("job_b", "ten_other")]
    assert (worker["running"], worker["free_blocks"]) == (2, 10)
    (queue,) = own["queues"]
    assert (own["share"], queue["queued"]["jobs"], queue["tenants"]) == ("own", 1, [])
    (worker,) = own["workers"]
    assert (worker["jobs"], worker["running"], worker["free_blocks"]) == ([], None, None), "nothing of other tenants"


def test_many_consoles_cost_what_one_does(api: httpx2.Client, redis_client: redis.Redis) -> None:
    SnapshotPublisher(redis_client).publish(snapshot(), None)
    with ExitStack() as stack:
        streams = [events(api, stack) for _ in range(6)]
        for stream in streams:
            stream.until("live")
        before, began = _reads(redis_client), time.monotonic()
        for _ in range(3):
            for stream in streams:
                stream.until("live")
        num_reads, num_periods = _reads(redis_client) - before, (time.monotonic() - began) / PERIOD_S
        # Eighteen events. A reading a period, of which one may have begun before the count and one may be under way.
        assert num_reads <= num_periods + 2


def _reads(client: redis.Redis) -> int:
    found: Any = client.info("commandstats")
    return int(found["cmdstat_smembers"]["calls"])


def test_the_state_says_what_could_not_be_read(settings: Settings, key: str, model: ModelVersion) -> None:
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"})
    headers = {"Authorization": f"Bearer {key}"}
    with serving(away) as server, ExitStack() as stack:
        client = stack.enter_context(httpx2.Client(base_url=server.url, headers=headers, timeout=60))
        state = events(client, stack).until("live")[-1].data
    assert state["missing"] == ["redis"]
    assert [queue["name"] for queue in state["queues"]] == [f"{model.model}@{model.version}"]


def test_the_history_adds_the_workers_of_a_step_and_keeps_tenants_apart() -> None:
    def tick(at: float, worker: str, tokens: dict[str, int], times: dict[str, list[float]], running: float) -> Any:
        return at, WorkerTick(worker=worker, queue="m@1", tokens=tokens, first_token_ms=times, running=running, slots=4)

    ticks = [
        tick(1001.0, "w1", {"a": 50, "b": 10}, {"a": [100.0, 900.0]}, 2.0),
        tick(1002.0, "w2", {"a": 5}, {"b": [300.0]}, 4.0),
        tick(1011.0, "w1", {"a": 20}, {}, 1.0),
    ]
    whole = live_view.history(ticks, None, 1016.0).points
    assert [point.at for point in whole] == [1005.0, 1010.0, 1015.0]
    assert [point.tokens_per_s for point in whole] == [65 / TICK_S, 0.0, 20 / TICK_S]
    assert [point.occupancy for point in whole] == [0.75, None, 0.25]
    assert (whole[0].first_token_p50_ms, whole[0].first_token_p95_ms) == (300.0, 900.0)
    (speed,) = live_view.history(ticks, "a", 1016.0).speeds
    assert (speed.queue, speed.tokens_per_s, speed.first_token_p50_ms) == ("m@1", round(75 / 60, 1), 100.0)
    own = live_view.history(ticks, "b", 1016.0).points
    assert [point.tokens_per_s for point in own] == [10 / TICK_S, 0.0, 0.0]
    assert {point.occupancy for point in own} == {None}, "the load of others is not shown"
    assert own[0].first_token_p95_ms == 300.0


def test_a_key_without_jobs_read_is_refused(db: Database, tenant: str, make_client: MakeClient) -> None:
    key = api_keys.create_key(db, tenant, "models", ["models:read"], actor="tests")
    assert make_client(key).get("/v1/live").status_code == 403

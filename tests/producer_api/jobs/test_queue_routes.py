"""Queues over HTTP: what a tenant sees, what an operator sees and may do, and where a job stands."""

import time
from typing import Any

import httpx2
import pytest

from headrace.producer_api.submission.queue_limits import KEEP_S
from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.scheduling import queues
from headrace.store.scheduling.autoscale import Decision, ScaleHistory
from headrace.store.scheduling.scale_decisions import write_decisions
from headrace.store.scheduling.service_rate import Rate
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.processes import wait_for
from tests.producer_api.calling import PROMPT, error_of, num_jobs, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.serving import serving

QUEUE = "tiny@1"
# "hello" is 5 tokens to the fake model.
COST = 5 + 8


@pytest.fixture
def reader(db: Database, tenant: str, make_client: MakeClient) -> httpx2.Client:
    return make_client(api_keys.create_key(db, tenant, "reader", ["jobs:read", "jobs:write"], actor="tests"))


@pytest.fixture
def other(db: Database, make_client: MakeClient) -> httpx2.Client:
    tenant = api_keys.create_tenant(db, "initech")
    return make_client(api_keys.create_key(db, tenant, "other", ["jobs:read", "jobs:write"], actor="tests"))


def submit_many(client: httpx2.Client, count: int, **fields: Any) -> list[str]:
    return [submit(client, sampling={"max_tokens": 8}, **fields) for _ in range(count)]


def queue_of(client: httpx2.Client, name: str = QUEUE) -> dict[str, Any]:
    response = client.get(f"/v1/queues/{name}")
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_a_tenant_sees_its_own_share_and_an_operator_everything(
    api: httpx2.Client, reader: httpx2.Client, other: httpx2.Client
) -> None:
    submit_many(api, 2)
    submit_many(other, 3, service_class="batch")
    whole, own, others = queue_of(api), queue_of(reader), queue_of(other)
    assert (whole["share"], own["share"]) == ("all", "own")
    assert [view["queued"]["jobs"] for view in (whole, own, others)] == [5, 2, 3]
    assert own["queued"]["tokens"] == 2 * COST
    assert whole["by_class"] == {
        "interactive": {"jobs": 0, "tokens": 0},
        "standard": {"jobs": 2, "tokens": 2 * COST},
        "batch": {"jobs": 3, "tokens": 3 * COST},
    }
    assert 0 <= whole["oldest_age_s"] < 60
    assert (whole["rate"], whole["paused_at"]) == (None, None)
    assert whole["announced"] == 2, "the ready window has room for all, and the batch class waits for the dispatcher"
    assert api.get("/v1/queues").json()["data"] == [
        whole | {"oldest_age_s": pytest.approx(whole["oldest_age_s"], abs=30)}
    ]


def test_an_empty_queue_is_there_and_an_unknown_one_is_not(api: httpx2.Client) -> None:
    assert queue_of(api)["queued"] == {"jobs": 0, "tokens": 0}
    for answer in (api.get("/v1/queues/none@1"), api.post("/v1/queues/none@1/pause")):
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "not_found"


def test_a_paused_queue_accepts_and_keeps(api: httpx2.Client, db: Database) -> None:
    paused = api.post(f"/v1/queues/{QUEUE}/pause")
    assert paused.status_code == 200
    assert paused.json()["paused_at"] is not None
    job_id = submit(api)
    assert queue_of(api)["announced"] == 0
    assert api.post(f"/v1/queues/{QUEUE}/resume").json()["paused_at"] is None
    assert api.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
    assert num_jobs(db) == 1


def test_pausing_needs_the_scope(reader: httpx2.Client, make_client: MakeClient, db: Database, tenant: str) -> None:
    for change in ("pause", "resume"):
        refused = reader.post(f"/v1/queues/{QUEUE}/{change}")
        assert refused.status_code == 403
        assert error_of(refused)["code"] == "insufficient_scope"
    blind = make_client(api_keys.create_key(db, tenant, "blind", ["queues:admin"], actor="tests"))
    assert blind.get("/v1/queues").status_code == 403
    assert make_client(None).get("/v1/queues").status_code == 401


def test_a_job_says_where_it_stands_and_when_it_may_start(api: httpx2.Client, db: Database) -> None:
    ids = submit_many(api, 4)

    def place() -> Any:
        return api.get(f"/v1/jobs/{ids[3]}").json()["queue"]

    wait_for(lambda: place()["position"] is not None, "the job is old enough to be looked for")
    assert place() == {"name": QUEUE, "position": 4, "estimated_start_at": None}
    began = time.time()  # noqa: TID251 - what the answer is compared with
    queues.record_rates(db, {QUEUE: Rate(1.0, COST / 10)})

    def estimate() -> Any:
        return place()["estimated_start_at"]

    def served_estimate() -> Any:
        presence.beat_worker(db, "w1", QUEUE, None)
        return estimate()

    found = wait_for(served_estimate, "the rate is known, and a worker serves the queue")
    assert began + 29 <= found <= time.time() + 31  # noqa: TID251
    assert queue_of(api)["rate"] == {"jobs_per_s": 1.0, "tokens_per_s": 1.3}
    presence.leave_worker(db, "w1")

    def estimate_by_a_new_rate() -> Any:
        queues.record_rates(db, {QUEUE: Rate(1.0, COST / 10)})
        return estimate()

    wait_for(lambda: estimate_by_a_new_rate() is None, "the last worker is gone, whatever the rate was")


def test_a_deadline_that_cannot_be_met_is_refused_by_a_measured_rate_only(api: httpx2.Client, db: Database) -> None:
    submit_many(api, 10)
    hurried = {**PROMPT, "sampling": {"max_tokens": 8}, "deadline_ms": 20_000, "service_class": "batch"}
    assert api.post("/v1/jobs", json=hurried, headers={"Idempotency-Key": "early"}).status_code == 202
    queues.record_rates(db, {QUEUE: Rate(0.1, COST / 10)})
    wait_for(lambda: api.post("/v1/jobs", json=hurried).status_code == 400, "the rate is known")
    refused = api.post("/v1/jobs", json=hurried)
    error = error_of(refused)
    assert (error["code"], error["type"], error["param"]) == (
        "deadline_unreachable",
        "invalid_request_error",
        "deadline_ms",
    )
    again = api.post("/v1/jobs", json=hurried, headers={"Idempotency-Key": "early"})
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (202, "true"), "it was accepted before"
    assert api.post("/v1/jobs", json={**hurried, "deadline_ms": 900_000}).status_code == 202
    assert api.post("/v1/jobs", json=PROMPT).status_code == 202, "its owner set no deadline"


@pytest.mark.usefixtures("model")
def test_a_full_queue_says_when_there_will_be_room(
    settings: Settings, key: str, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    queues.record_rates(db, {QUEUE: Rate(0.5, 1000.0)})
    with serving(settings.model_copy(update={"max_queued_jobs": 3})) as server:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client:
            monkeypatch.setattr(server.runtime.queue_limits, "clock", lambda: now)
            submit_many(client, 3)
            now += KEEP_S
            refused = [client.post("/v1/jobs", json=PROMPT) for _ in range(4)]
            assert [response.status_code for response in refused] == [429] * 4
            waits = [int(response.headers["retry-after-ms"]) for response in refused]
            # One place becomes free every two seconds, so each refused request gets another Retry-After.
            assert waits == [2000, 4000, 6000, 8000]
            for _ in range(70):
                last = client.post("/v1/jobs", json=PROMPT)
            assert int(last.headers["retry-after"]) == 120


def test_a_scaler_reads_how_many_workers_a_queue_should_have(
    api: httpx2.Client, reader: httpx2.Client, db: Database
) -> None:
    refused = api.get("/v1/queues/tiny/scaling")
    assert (refused.status_code, error_of(refused)["code"]) == (404, "not_autoscaled")
    assert queue_of(api)["scaling"] is None
    write_decisions(db, {QUEUE: Decision(3, "900 tokens wait", ScaleHistory())})
    found = api.get("/v1/queues/tiny/scaling").json()
    assert (found["workers"], found["reason"]) == (3, "900 tokens wait")
    assert queue_of(api)["scaling"] == found
    assert api.get(f"/v1/queues/{QUEUE}/scaling").json() == found
    assert reader.get(f"/v1/queues/{QUEUE}/scaling").status_code == 403
    assert api.get("/v1/queues/none/scaling").status_code == 404

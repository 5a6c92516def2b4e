"""Endpoints, secrets and deliveries over HTTP. Sending them is tested with the sender."""

from datetime import UTC, datetime

import httpx2
import orjson
import pytest
from sqlalchemy import text

from headrace.features.webhooks.outbox import AttemptResult, record_delivered, record_failed, take_due
from headrace.features.webhooks.sender import body_of
from headrace.store.db.database import Database
from headrace.store.schema.event_types import EVENT_TYPES, REGISTRY_EVENTS, TEST
from headrace.store.tenants import api_keys
from tests.cases import some_of
from tests.producer_api.calling import error_of, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.jobs.test_version_routes import second

__all__ = ["second"]

URL = "https://hooks.example.com/headrace"
HOOKS = "/v1/webhook_endpoints"
DELIVERIES = "/v1/webhook_deliveries"
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def ended(api: httpx2.Client, **fields: object) -> str:
    job_id = submit(api, **fields)
    api.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    return job_id


def test_an_endpoint_shows_its_secret_once(api: httpx2.Client) -> None:
    created = api.post(HOOKS, json={"url": URL, "events": ["job.succeeded", "job.failed"]})
    assert created.status_code == 201
    assert created.headers["cache-control"] == "no-store"
    endpoint = created.json()
    assert endpoint["secret"].startswith("whsec_")
    assert endpoint["events"] == ["job.failed", "job.succeeded"]
    shown = endpoint | {"secret": None}
    assert api.get(HOOKS).json()["data"] == [shown]
    assert api.get(f"{HOOKS}/{endpoint['id']}").json() == shown
    rotated = api.post(f"{HOOKS}/{endpoint['id']}/rotate_secret", json={"overlap_s": 60})
    assert rotated.headers["cache-control"] == "no-store"
    assert rotated.json()["secret"] not in (None, endpoint["secret"])
    assert rotated.json()["old_secret_expires_at"] is not None
    again = api.post(f"{HOOKS}/{endpoint['id']}/rotate_secret")
    assert (again.status_code, error_of(again)["code"]) == (409, "rotation_in_progress")
    assert "overlap_s" in error_of(again)["message"]


def test_an_endpoint_is_changed_and_removed(api: httpx2.Client) -> None:
    endpoint = api.post(HOOKS, json={"url": URL}).json()
    path = f"{HOOKS}/{endpoint['id']}"
    changed = api.patch(path, json={"events": ["batch.failed"]}).json()
    assert (changed["url"], changed["events"], changed["secret"]) == (URL, ["batch.failed"], None)
    assert api.patch(path, json={"url": f"{URL}/2"}).json()["url"] == f"{URL}/2"
    assert api.delete(path).json() == {"id": endpoint["id"], "object": "webhook_endpoint", "deleted": True}
    assert api.get(HOOKS).json()["data"] == []
    assert api.delete(path).status_code == 404


def test_a_url_is_an_endpoint_once(api: httpx2.Client) -> None:
    other = api.post(HOOKS, json={"url": f"{URL}/2"}).json()["id"]
    api.post(HOOKS, json={"url": URL})
    for again in (api.post(HOOKS, json={"url": URL}), api.patch(f"{HOOKS}/{other}", json={"url": URL})):
        assert (again.status_code, error_of(again)["param"]) == (409, "url")


@some_of(
    3,
    ("body", "param"),
    [
        ({}, "url"),
        ({"url": ""}, "url"),
        ({"url": "http://hooks.example.com/"}, "url"),
        ({"url": "https://localhost/"}, "url"),
        ({"url": "https://[::1]/"}, "url"),
        ({"url": "https://192.168.1.1/"}, "url"),
        ({"url": URL, "events": []}, "events"),
        ({"url": URL, "events": ["job.exploded"]}, "events"),
        ({"url": URL, "secret": "mine"}, "secret"),
    ],
)
def test_a_bad_endpoint_is_refused(api: httpx2.Client, body: dict[str, object], param: str) -> None:
    response = api.post(HOOKS, json=body)
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert api.get(HOOKS).json()["data"] == []
    if "job.exploded" in str(body):
        assert "job.succeeded" in error_of(response)["message"]
    if body:
        endpoint = api.post(HOOKS, json={"url": URL}).json()
        path = f"{HOOKS}/{endpoint['id']}"
        refused = api.patch(path, json=body)
        assert (refused.status_code, error_of(refused)["param"]) == (400, param)
        assert api.get(path).json() == endpoint | {"secret": None}


def test_a_job_names_the_events_that_its_own_url_is_told(api: httpx2.Client) -> None:
    wanted = {"url": URL, "events": ["job.cancelled"]}
    for webhook, num in ((wanted, 1), ({"url": URL, "events": ["job.failed"]}, 0), ({"url": URL}, 1)):
        job_id = ended(api, webhook=webhook)
        assert len(api.get(DELIVERIES, params={"job_id": job_id}).json()["data"]) == num
    for events in (["batch.failed"], [], ["*"]):
        body = {"model": "tiny", "input": {"prompt": "x"}, "webhook": {"url": URL, "events": events}}
        refused = api.post("/v1/jobs", json=body)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "webhook.events")
    assert "job.succeeded" in error_of(refused)["message"]


def test_deliveries_are_listed_by_page_and_filter(api: httpx2.Client) -> None:
    endpoint = api.post(HOOKS, json={"url": URL}).json()["id"]
    own = ended(api, webhook={"url": "https://hooks.example.com/own"})
    ended(api)
    everything = api.get(DELIVERIES).json()
    assert (len(everything["data"]), everything["has_more"]) == (3, False)
    page = api.get(DELIVERIES, params={"limit": 2}).json()
    rest = api.get(DELIVERIES, params={"limit": 2, "after": page["last_id"]}).json()
    assert (page["has_more"], rest["has_more"]) == (True, False)
    assert page["data"] + rest["data"] == everything["data"]
    deliveries = api.get(DELIVERIES, params={"job_id": own}).json()["data"]
    assert {delivery["url"] for delivery in deliveries} == {URL, "https://hooks.example.com/own"}
    assert {(delivery["type"], delivery["status"]) for delivery in deliveries} == {("job.cancelled", "pending")}
    assert all(delivery["id"].startswith("evt_") for delivery in deliveries)
    for only, num in (
        ({"endpoint_id": endpoint}, 2),
        ({"endpoint_id": endpoint, "job_id": own}, 1),
        ({"status": "delivered"}, 0),
        ({"type": "job.cancelled", "status": "pending"}, 3),
    ):
        assert len(api.get(DELIVERIES, params=only).json()["data"]) == num, only
    for bad in ("status=gone", "type=job.exploded", "after=evt_x", "limit=0"):
        refused = api.get(f"{DELIVERIES}?{bad}")
        assert (refused.status_code, error_of(refused)["param"]) == (400, bad.partition("=")[0])
    told = error_of(api.get(f"{DELIVERIES}?type=job.exploded"))["message"]
    assert told == f"unknown event type: use {', '.join(sorted(EVENT_TYPES | {TEST}))}"


def test_a_delivery_shows_its_tries_and_is_sent_again(api: httpx2.Client, db: Database) -> None:
    job_id = ended(api, webhook={"url": URL})
    for status, error in ((500, "answered 500"), (200, None)):
        (delivery,) = take_due(db, 1, 0)
        tried = AttemptResult(NOW, 1500, status, error)
        if error:
            record_failed(db, delivery, tried, retry_in_s=0, patience_s=1)
        else:
            record_delivered(db, delivery, tried)
    path = f"{DELIVERIES}/{delivery.id}"
    shown = api.get(path).json()
    assert (shown["job_id"], shown["status"], shown["attempts"]) == (job_id, "delivered", 2)
    common = {"at": NOW.timestamp(), "duration_ms": 1500}
    assert shown["tries"] == [
        {"attempt": 1, "status": 500, "error": "answered 500", **common},
        {"attempt": 2, "status": 200, "error": None, **common},
    ]
    again = api.post(f"{path}/redeliver")
    assert (again.status_code, again.json()["status"], again.json()["attempts"]) == (202, "pending", 2)
    assert [one.id for one in take_due(db, 1, 0)] == [delivery.id]


def test_an_endpoint_that_is_gone_is_enabled_tested_and_told_what_it_missed(api: httpx2.Client, db: Database) -> None:
    endpoint = api.post(HOOKS, json={"url": URL}).json()["id"]
    path = f"{HOOKS}/{endpoint}"
    first = ended(api)
    (delivery,) = take_due(db, 1, 60)
    record_failed(db, delivery, AttemptResult(NOW, 5, 410, "answered 410"), retry_in_s=None, patience_s=60)
    missed = ended(api)
    shown = api.get(path).json()
    assert (shown["disabled_reason"], shown["disabled_at"] is None) == ("gone", False)
    for post in (f"{path}/test", f"{path}/recover", f"{DELIVERIES}/{delivery.id}/redeliver"):
        refused = api.post(post, json={"since": 0} if post.endswith("recover") else None)
        assert (refused.status_code, error_of(refused)["code"]) == (409, "endpoint_disabled")
        assert f"{path}/enable" in error_of(refused)["message"]
    enabled = api.post(f"{path}/enable").json()
    assert (enabled["disabled_reason"], enabled["disabled_at"], enabled["failing_since"]) == (None, None, None)
    tested = api.post(f"{path}/test")
    assert (tested.status_code, tested.json()["type"]) == (202, "webhook.test")
    assert tested.json()["about_endpoint_id"] == endpoint
    recovered = api.post(f"{path}/recover", json={"since": 0, "limit": 1})
    assert recovered.status_code == 202
    assert recovered.json() == {
        "object": "webhook_endpoint.recovery",
        "endpoint_id": endpoint,
        "queued": 1,
        "has_more": True,
    }
    assert api.post(f"{path}/recover", json={"since": 0}).json()["queued"] == 1
    assert api.post(f"{path}/recover", json={"since": 0}).json()["queued"] == 0
    assert {one.subject_id for one in take_due(db, 10, 60)} == {first, missed, endpoint}


@some_of(
    2,
    ("body", "param"),
    [
        ({}, "since"),
        ({"since": -1}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"since": 100, "until": 100}, None),
        ({"since": 0, "limit": 1001}, "limit"),
        ({"since": 0, "limit": True}, "limit"),
        ({"since": 0, "all": True}, "all"),
    ],
)
def test_a_bad_recovery_is_refused(api: httpx2.Client, body: dict[str, object], param: str | None) -> None:
    endpoint = api.post(HOOKS, json={"url": URL}).json()["id"]
    refused = api.post(f"{HOOKS}/{endpoint}/recover", json=body)
    assert (refused.status_code, error_of(refused)["param"]) == (400, param)


def test_the_secret_for_a_jobs_own_url_stays_the_same_until_it_is_rotated(
    api: httpx2.Client, make_client: MakeClient, other_key: str
) -> None:
    first, second = (api.get("/v1/webhook_secret") for _ in range(2))
    assert first.json() == second.json()
    assert first.json()["secret"].startswith("whsec_")
    assert first.headers["cache-control"] == "no-store"
    theirs = make_client(other_key).get("/v1/webhook_secret").json()
    rotated = api.post("/v1/webhook_secret/rotate", json={"overlap_s": 3600})
    assert rotated.headers["cache-control"] == "no-store"
    assert rotated.json() == api.get("/v1/webhook_secret").json()
    assert rotated.json()["secret"] != first.json()["secret"]
    assert rotated.json()["old_secret_expires_at"] is not None
    assert make_client(other_key).get("/v1/webhook_secret").json() == theirs
    again = make_client(other_key).post("/v1/webhook_secret/rotate").raise_for_status().json()
    day = again["old_secret_expires_at"] - datetime.now(UTC).timestamp()
    assert 86_400 - 600 < day <= 86_400, "the old one signs for a day"
    for overlap_s in (-1, 10**9, "a day", False):
        assert api.post("/v1/webhook_secret/rotate", json={"overlap_s": overlap_s}).status_code == 400


@pytest.mark.usefixtures("second")
def test_operators_are_told_of_rollouts_and_rejected_versions_whichever_tenant_began_them(
    api: httpx2.Client, make_client: MakeClient, other_key: str, db: Database
) -> None:
    operator = make_client(other_key)
    everything = operator.post(HOOKS, json={"url": f"{URL}/tenant"}).json()
    endpoint = operator.post(HOOKS, json={"url": URL, "events": [*REGISTRY_EVENTS, "job.failed"]}).json()
    body = {"model": "tiny", "version": 2, "steps": [{"percent": 1, "hold_s": 600}]}
    rollout = api.post("/v1/rollouts", json=body).json()["id"]
    api.post(f"/v1/rollouts/{rollout}/pause").raise_for_status()
    api.post(f"/v1/rollouts/{rollout}/abort").raise_for_status()
    with db.begin() as connection:
        connection.execute(text("UPDATE model_versions SET state = 'rejected', state_at = now() WHERE version = 2"))

    def told() -> list[tuple[str, str]]:
        rows = operator.get(DELIVERIES).json()["data"]
        assert {row["endpoint_id"] for row in rows} <= {endpoint["id"]}
        return sorted((row["type"], row["registry_id"]) for row in rows)

    expected = [("rollout.aborted", rollout), ("rollout.started", rollout), ("version.rejected", "tiny@2")]
    assert told() == expected
    bodies = [orjson.loads(body_of(one))["data"] for one in take_due(db, 10, 60)]
    assert sorted((one["object"], one["id"], one["status"]) for one in bodies) == [
        ("model_version", "tiny@2", "rejected"),
        ("rollout", rollout, "aborted"),
        ("rollout", rollout, "started"),
    ]
    for one in (endpoint, everything):
        assert operator.post(f"{HOOKS}/{one['id']}/recover", json={"since": 0}).json()["queued"] == 0
    assert api.get(DELIVERIES).json()["data"] == []
    with db.begin() as connection:
        connection.execute(text("DELETE FROM webhook_deliveries"))
    assert operator.post(f"{HOOKS}/{endpoint['id']}/recover", json={"since": 0}).json()["queued"] == 3
    assert told() == expected


def test_a_key_that_may_not_see_all_rollouts_neither_subscribes_to_them_nor_moves_them(
    api: httpx2.Client, make_client: MakeClient, db: Database, tenant: str
) -> None:
    path = f"{HOOKS}/{api.post(HOOKS, json={'url': URL, 'events': ['rollout.rolled_back']}).json()['id']}"
    tenants_key = api_keys.create_key(db, tenant, "hooks", {"webhooks:admin"}, actor="tests")
    one_models = api_keys.create_key(db, tenant, "one", {"admin", "registry:admin"}, models=["tiny"], actor="tests")
    for client in (make_client(tenants_key), make_client(one_models)):
        plain = client.post(HOOKS, json={"url": f"{URL}/2"}).json()["id"]
        for refused in (
            client.post(HOOKS, json={"url": f"{URL}/3", "events": ["rollout.started"]}),
            client.patch(f"{HOOKS}/{plain}", json={"events": ["job.failed", "version.rejected"]}),
            client.patch(path, json={"url": f"{URL}/4"}),
            client.patch(path, json={"events": ["job.failed"]}),
        ):
            assert (refused.status_code, error_of(refused)["param"]) == (403, "events")
        assert client.delete(f"{HOOKS}/{plain}").status_code == 200
    assert (api.get(path).json()["url"], api.get(path).json()["events"]) == (URL, ["rollout.rolled_back"])
    assert api.patch(path, json={"url": f"{URL}/4"}).json()["url"] == f"{URL}/4"

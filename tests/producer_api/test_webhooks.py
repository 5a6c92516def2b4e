"""Endpoints, secrets and deliveries over HTTP. Sending them is tested with the sender."""

import httpx2
import pytest

from tests.producer_api.calling import error_of, submit

URL = "https://hooks.example.com/headrace"


def test_an_endpoint_shows_its_secret_once(api: httpx2.Client) -> None:
    created = api.post("/v1/webhook_endpoints", json={"url": URL, "events": ["job.succeeded", "job.failed"]})
    assert created.status_code == 201
    assert created.headers["cache-control"] == "no-store"
    endpoint = created.json()
    assert endpoint["secret"].startswith("whsec_")
    assert endpoint["events"] == ["job.failed", "job.succeeded"]
    assert api.get("/v1/webhook_endpoints").json()["data"] == [endpoint | {"secret": None}]


def test_an_endpoint_is_removed(api: httpx2.Client) -> None:
    endpoint = api.post("/v1/webhook_endpoints", json={"url": URL}).json()
    path = f"/v1/webhook_endpoints/{endpoint['id']}"
    assert api.delete(path).json() == {"id": endpoint["id"], "object": "webhook_endpoint", "deleted": True}
    assert api.get("/v1/webhook_endpoints").json()["data"] == []
    assert api.delete(path).status_code == 404


def test_a_url_is_an_endpoint_once(api: httpx2.Client) -> None:
    api.post("/v1/webhook_endpoints", json={"url": URL})
    again = api.post("/v1/webhook_endpoints", json={"url": URL})
    assert (again.status_code, error_of(again)["param"]) == (409, "url")


@pytest.mark.parametrize(
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
    response = api.post("/v1/webhook_endpoints", json=body)
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert api.get("/v1/webhook_endpoints").json()["data"] == []


def test_deliveries_are_listed_by_job(api: httpx2.Client) -> None:
    api.post("/v1/webhook_endpoints", json={"url": URL})
    own = submit(api, webhook={"url": "https://hooks.example.com/own"})
    other = submit(api)
    for job_id in (own, other):
        api.post(f"/v1/jobs/{job_id}/cancel")
    assert len(api.get("/v1/webhook_deliveries").json()["data"]) == 3
    deliveries = api.get("/v1/webhook_deliveries", params={"job_id": own}).json()["data"]
    assert {delivery["url"] for delivery in deliveries} == {URL, "https://hooks.example.com/own"}
    assert {(delivery["type"], delivery["status"]) for delivery in deliveries} == {("job.cancelled", "pending")}
    assert all(delivery["id"].startswith("evt_") for delivery in deliveries)


def test_the_secret_for_a_jobs_own_url_stays_the_same(api: httpx2.Client) -> None:
    first, second = (api.get("/v1/webhook_secret") for _ in range(2))
    assert first.json() == second.json()
    assert first.json()["secret"].startswith("whsec_")
    assert first.headers["cache-control"] == "no-store"

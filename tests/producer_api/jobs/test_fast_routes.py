"""The fast path answers the same as FastAPI's routes, and is used for common requests."""

from collections.abc import Iterator
from typing import Any, NoReturn

import httpx2
import pytest
from fastapi.routing import APIRoute

from headrace.producer_api import app
from headrace.producer_api.jobs.fast_routes import FastRoutes
from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.cases import some_of
from tests.producer_api.calling import PROMPT, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.serving import serving

CHANGING = {"date", "x-request-id", "openai-processing-ms", "x-job-id", "location", "content-length"}


@pytest.fixture
def routed(
    settings: Settings, model: ModelVersion, key: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[httpx2.Client]:
    """A client of a second server, which has no short way."""
    monkeypatch.setattr(app, "LAYERS", tuple(layer for layer in app.LAYERS if layer is not FastRoutes))
    headers = {"Authorization": f"Bearer {key}"}
    with serving(settings) as server, httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def ended_job(api: httpx2.Client) -> str:
    job_id = submit(api)
    api.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    return job_id


def told(response: httpx2.Response) -> tuple[int, set[str], dict[str, Any]]:
    """An answer without ids, times, remaining limits, and the queue position, which comes later."""
    body = response.json()
    body.pop("queue", None)
    for name in ("id", "created_at", "expires_at", "links"):
        body.pop(name, None)
    names = {name for name in response.headers if name not in CHANGING}
    return response.status_code, names, body


SUBMITS: list[dict[str, Any]] = [
    {"json": PROMPT},
    {"json": PROMPT, "headers": {"Prefer": "wait=0"}},
    {"json": {**PROMPT, "colour": "red"}},
    {"json": {**PROMPT, "model": "unknown"}},
    {"json": {**PROMPT, "priority": "5"}},
    {"json": {**PROMPT, "sampling": {"stop": "no list"}}},
    {"json": [1]},
    {"content": b"{", "headers": {"Content-Type": "application/json"}},
    {"content": b'{"model": NaN}', "headers": {"Content-Type": "application/json"}},
    {"content": b"", "headers": {"Content-Type": "application/json"}},
    {"content": b"{}", "headers": {"Content-Type": "text/plain"}},
    {"json": PROMPT, "headers": {"Idempotency-Key": ""}},
    {"json": PROMPT, "params": {"a": "b"}},
]


def test_submits_get_the_same_answers(api: httpx2.Client, routed: httpx2.Client) -> None:
    for given in SUBMITS:
        assert told(api.post("/v1/jobs", **given)) == told(routed.post("/v1/jobs", **given)), given


@some_of(3, "query", ["", "?wait=0", "?wait=00", "?wait=-1", "?wait=nan", "?wait=0.01", "?a=b", "?wait=0&wait=1"])
def test_looks_get_the_same_answers(api: httpx2.Client, routed: httpx2.Client, query: str) -> None:
    for job_id in (submit(api), "job_unknown", "job%2Fx", "%00"):
        path = f"/v1/jobs/{job_id}{query}"
        assert told(api.get(path)) == told(routed.get(path))


@some_of(2, "last_id", [None, "", "0-0", "0-1", "9-9", "nonsense", "é".encode()])
@pytest.mark.parametrize("query", ["", "?starting_after=0-0", "?starting_after=nonsense"])
def test_streams_are_the_same(
    api: httpx2.Client, routed: httpx2.Client, ended_job: str, query: str, last_id: str | bytes | None
) -> None:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    for job_id in (ended_job, "job_unknown", "%00"):
        path = f"/v1/jobs/{job_id}/events{query}"
        short, long = (client.get(path, headers=headers) for client in (api, routed))
        assert (short.status_code, short.headers.keys()) == (long.status_code, long.headers.keys())
        assert _without_request_id(short) == _without_request_id(long)


def _without_request_id(response: httpx2.Response) -> bytes:
    return response.content.replace(response.headers["x-request-id"].encode(), b"")


def test_one_key_and_one_body_are_one_job_on_both_ways(api: httpx2.Client, routed: httpx2.Client) -> None:
    key = {"Idempotency-Key": "one"}
    first = api.post("/v1/jobs", json=PROMPT, headers=key).json()["id"]
    assert routed.post("/v1/jobs", json=PROMPT, headers=key).json()["id"] == first
    again = {"x-stainless-retry-count": "1"}
    fresh = routed.post("/v1/jobs", json={**PROMPT, "priority": 7}).json()["id"]
    assert api.post("/v1/jobs", json={**PROMPT, "priority": 7}, headers=again).json()["id"] == fresh


def test_a_key_without_the_scope_is_refused(
    make_client: MakeClient, db: Database, tenant: str, api: httpx2.Client
) -> None:
    job_id = submit(api)
    blind = make_client(api_keys.create_key(db, tenant, "blind", ["models:read"], actor="tests"))
    assert blind.post("/v1/jobs", json=PROMPT).status_code == 403
    assert blind.get(f"/v1/jobs/{job_id}").status_code == 403
    assert make_client(None).get(f"/v1/jobs/{job_id}").status_code == 401


def test_what_is_usual_takes_the_short_way(api: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(*_: object) -> NoReturn:
        raise AssertionError("FastAPI was asked")

    monkeypatch.setattr(APIRoute, "handle", handle)
    job_id = api.post("/v1/jobs", json=PROMPT).raise_for_status().json()["id"]
    assert api.get(f"/v1/jobs/{job_id}").raise_for_status().json()["id"] == job_id
    assert api.get(f"/v1/jobs/{job_id}?wait=1").raise_for_status().json()["status"] == "queued"
    assert api.post(f"/v1/jobs/{job_id}/cancel").status_code == 500, "the others do not"
    monkeypatch.undo()
    api.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    monkeypatch.setattr(APIRoute, "handle", handle)
    assert b"job.cancelled" in api.get(f"/v1/jobs/{job_id}/events").raise_for_status().content


def test_metrics_name_the_routes(api: httpx2.Client) -> None:
    api.get(f"/v1/jobs/{submit(api)}").raise_for_status()
    text = api.get("/metrics").text
    assert 'method="POST",route="/v1/jobs",status="202"' in text
    assert 'method="GET",route="/v1/jobs/{job_id}",status="200"' in text

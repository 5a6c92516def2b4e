"""Who may call what: every route under /v1/ against every kind of key, and nobody meets another tenant's things."""

from collections.abc import Iterator

import httpx2
import pytest

from producer_api.auth import KEEP_S, KeyRing
from store import keys
from store.db import Database
from store.errors import Unauthenticated
from tests.producer_api.calling import CHAT, PROMPT, error_of, num_jobs, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer

NEEDED = {
    ("post", "/v1/jobs"): "jobs:write",
    ("get", "/v1/jobs"): "jobs:read",
    ("get", "/v1/jobs/{job_id}"): "jobs:read",
    ("post", "/v1/jobs/{job_id}/cancel"): "jobs:write",
    ("get", "/v1/jobs/{job_id}/timeline"): "jobs:read",
    ("get", "/v1/jobs/{job_id}/events"): "jobs:read",
    ("get", "/v1/dead_letters"): "jobs:read",
    ("post", "/v1/dead_letters/replay"): "jobs:write",
    ("post", "/v1/dead_letters/{job_id}/replay"): "jobs:write",
    ("get", "/v1/queues"): "jobs:read",
    ("get", "/v1/queues/{name}"): "jobs:read",
    ("post", "/v1/queues/{name}/pause"): "queues:admin",
    ("post", "/v1/queues/{name}/resume"): "queues:admin",
    ("post", "/v1/chat/completions"): "jobs:write",
    ("post", "/v1/completions"): "jobs:write",
    ("post", "/v1/moderations"): "jobs:write",
    ("post", "/v1/embeddings"): "jobs:write",
    ("post", "/v1/responses"): "jobs:write",
    ("post", "/v1/responses/input_tokens"): "jobs:read",
    ("get", "/v1/responses/{response_id}"): "jobs:read",
    ("delete", "/v1/responses/{response_id}"): "jobs:write",
    ("post", "/v1/responses/{response_id}/cancel"): "jobs:write",
    ("get", "/v1/responses/{response_id}/input_items"): "jobs:read",
    ("post", "/v1/prompts"): "jobs:write",
    ("get", "/v1/prompts"): "jobs:read",
    ("post", "/v1/prompts/{prompt_id}/versions"): "jobs:write",
    ("get", "/v1/prompts/{prompt_id}/versions"): "jobs:read",
    ("get", "/v1/files"): "jobs:read",
    ("post", "/v1/files"): "jobs:write",
    ("get", "/v1/files/{file_id}"): "jobs:read",
    ("get", "/v1/files/{file_id}/content"): "jobs:read",
    ("delete", "/v1/files/{file_id}"): "jobs:write",
    ("get", "/v1/batches"): "jobs:read",
    ("post", "/v1/batches"): "jobs:write",
    ("get", "/v1/batches/{batch_id}"): "jobs:read",
    ("post", "/v1/batches/{batch_id}/cancel"): "jobs:write",
    ("get", "/v1/policies"): "models:admin",
    ("put", "/v1/policies"): "models:admin",
    ("get", "/v1/models"): "models:read",
    ("get", "/v1/models/{model}"): "models:read",
    ("get", "/v1/organization/usage/completions"): "usage:read",
    ("get", "/v1/organization/usage/embeddings"): "usage:read",
    ("get", "/v1/organization/costs"): "usage:read",
    ("get", "/v1/organization/audit_logs"): "audit:read",
    ("get", "/v1/organization/audit_logs/export"): "audit:read",
    ("get", "/v1/webhook_endpoints"): "webhooks:admin",
    ("post", "/v1/webhook_endpoints"): "webhooks:admin",
    ("delete", "/v1/webhook_endpoints/{endpoint_id}"): "webhooks:admin",
    ("get", "/v1/webhook_secret"): "webhooks:admin",
    ("get", "/v1/webhook_deliveries"): "webhooks:admin",
}
OPEN = {"/healthz", "/readyz", "/metrics", "/version"}
BODIES = {
    "/v1/jobs": PROMPT,
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "prompt": "hello"},
    "/v1/embeddings": {"model": "tiny", "input": "x"},
    "/v1/responses": {"model": "tiny", "input": "hello"},
    "/v1/responses/input_tokens": {"model": "tiny", "input": "hello"},
    "/v1/prompts": {"instructions": "Be brief."},
    "/v1/prompts/pmpt_0/versions": {"instructions": "Be brief."},
    "/v1/moderations": {"input": "hello"},
    "/v1/dead_letters/replay": {},
    "/v1/webhook_endpoints": {"url": "https://hooks.example.com/matrix"},
}


def _calls(job_id: str) -> Iterator[tuple[str, str, str]]:
    ids = {"model": "tiny", "endpoint_id": "we_0", "name": "tiny@1", "response_id": "resp_0", "prompt_id": "pmpt_0"}
    ids |= {"file_id": "file_0", "batch_id": "batch_0"}
    for (method, path), scope in NEEDED.items():
        yield method, path.format(**ids, job_id=job_id), scope


def _call(client: httpx2.Client, method: str, path: str) -> httpx2.Response:
    body = BODIES.get(path) if method == "post" else None
    return client.request(method, path, json=body, timeout=5)


def test_every_route_is_in_the_matrix(server: ApiServer) -> None:
    routes = {(method, path) for path, methods in server.app.openapi()["paths"].items() for method in methods}
    assert {route for route in routes if route[1] not in OPEN} == set(NEEDED)


def test_no_route_answers_without_a_good_key(
    api: httpx2.Client, make_client: MakeClient, db: Database, tenant: str, key: str, subtests: pytest.Subtests
) -> None:
    job_id = submit(api)
    revoked = keys.create_key(db, tenant, "gone", keys.SCOPES, actor="tests")
    keys.revoke_key(db, tenant, "key_" + revoked.split("_")[1], actor="tests")
    expired = keys.create_key(db, tenant, "old", keys.SCOPES, expires_s=-1, actor="tests")
    bad = {"none": None, "wrong": key[:-1] + ("a" if key[-1] != "a" else "b"), "foreign": "sk-123", "cut": key[:20]}
    for name, candidate in (bad | {"revoked": revoked, "expired": expired}).items():
        client = make_client(candidate)
        for method, path, _ in _calls(job_id):
            with subtests.test(f"{name} {method} {path}"):
                response = _call(client, method, path)
                assert response.status_code == 401
                assert response.headers["www-authenticate"].startswith("Bearer")
                assert error_of(response)["code"] == "invalid_api_key"
    assert num_jobs(db) == 1


def test_each_route_needs_its_scope(
    api: httpx2.Client,
    make_client: MakeClient,
    db: Database,
    tenant: str,
    worker: ScriptedWorker,
    subtests: pytest.Subtests,
) -> None:
    job_id = submit(api)
    worker.succeed(worker.claim(job_id))
    with worker.serve(lambda _: ["x"]):
        for needed in sorted(set(NEEDED.values())):
            having = make_client(keys.create_key(db, tenant, needed, [needed], actor="tests"))
            lacking = make_client(
                keys.create_key(db, tenant, f"not {needed}", keys.SCOPES - {needed, "admin"}, actor="t")
            )
            for method, path, scope in _calls(job_id):
                with subtests.test(f"{needed} {method} {path}"):
                    assert (_call(having, method, path).status_code == 403) is (scope != needed)
                    assert (_call(lacking, method, path).status_code == 403) is (scope == needed)


def test_a_missing_scope_is_said_before_the_body_is_judged(make_client: MakeClient, db: Database, tenant: str) -> None:
    client = make_client(keys.create_key(db, tenant, "reader", ["jobs:read"], actor="tests"))
    response = client.post("/v1/jobs", json={"nonsense": 1})
    assert (response.status_code, error_of(response)["type"]) == (403, "permission_error")
    assert "jobs:write" in error_of(response)["message"]


def test_an_admin_may_do_everything(make_client: MakeClient, db: Database, tenant: str) -> None:
    client = make_client(keys.create_key(db, tenant, "admin", ["admin"], actor="tests"))
    assert client.post("/v1/jobs", json=PROMPT).status_code == 202


def test_nobody_meets_another_tenants_things(
    api: httpx2.Client, make_client: MakeClient, other_key: str, subtests: pytest.Subtests
) -> None:
    job_id = submit(api, webhook={"url": "https://hooks.example.com/"})
    endpoint = api.post("/v1/webhook_endpoints", json={"url": "https://hooks.example.com/mine"}).json()
    stranger = make_client(other_key)
    for method, path in (
        ("get", f"/v1/jobs/{job_id}"),
        ("get", f"/v1/jobs/{job_id}?wait=1"),
        ("get", f"/v1/jobs/{job_id}/events"),
        ("get", f"/v1/jobs/{job_id}/timeline"),
        ("post", f"/v1/jobs/{job_id}/cancel"),
        ("post", f"/v1/dead_letters/{job_id}/replay"),
        ("delete", f"/v1/webhook_endpoints/{endpoint['id']}"),
    ):
        with subtests.test(f"{method} {path}"):
            response = stranger.request(method, path)
            assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
    api.post(f"/v1/jobs/{job_id}/cancel")
    assert len(api.get("/v1/webhook_deliveries").json()["data"]) == 2
    for path in (
        "/v1/jobs",
        "/v1/webhook_endpoints",
        "/v1/webhook_deliveries",
        f"/v1/webhook_deliveries?job_id={job_id}",
    ):
        assert stranger.get(path).json()["data"] == []
    assert stranger.get("/v1/webhook_secret").json() != api.get("/v1/webhook_secret").json()


async def test_a_revoked_key_works_for_ten_seconds_at_most(db: Database, tenant: str, key: str) -> None:
    now = 0.0
    ring = KeyRing(db, clock=lambda: now)
    principal = await ring.principal(f"Bearer {key}")
    keys.revoke_key(db, tenant, principal.key_id, actor="tests")
    now = KEEP_S - 0.001
    assert await ring.principal(f"bearer {key}") == principal
    now = KEEP_S
    assert KEEP_S <= 10
    with pytest.raises(Unauthenticated):
        await ring.principal(f"Bearer {key}")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic aGk6aGk=", "hr_1_2"])
async def test_a_header_without_a_key(db: Database, header: str | None) -> None:
    with pytest.raises(Unauthenticated, match="Bearer hr_"):
        await KeyRing(db).principal(header)

"""Authorization of every route under /v1/ with every kind of key, and isolation between tenants."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import text

from headrace.features.retrieval import vector_stores
from headrace.features.retrieval.vector_stores import StoreModel
from headrace.models.catalog import register
from headrace.producer_api.access.auth import KEEP_S, Authenticator
from headrace.store.db.database import Database
from headrace.store.errors import Forbidden, Unauthenticated
from headrace.store.tenants import api_key_admin, api_keys, tenants
from tests.processes import ROOT
from tests.producer_api.calling import PROMPT, bury, error_of, num_jobs, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.serving import ApiServer

# Of the last, each link is signed.
OPEN = {"/health", "/healthz", "/readyz", "/metrics", "/version", "/results/{tenant_id}/{job_id}/{position}"}
PAGES = {"/", "/console", "/console/{name:path}", "/docs", "/docs/{name}", "/openapi.json"}
DOCS = ROOT / "docs" / "keys.md"
_PARAMETER = re.compile(r"{[^}]*}")
_ORDER = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Operation:
    """A method of a path, and the scopes that it needs according to the OpenAPI document."""

    method: str
    path: str
    scopes: tuple[str, ...]

    @property
    def collection(self) -> str:
        """Where its first id begins; the whole path if there is none."""
        return self.path.partition("{")[0]

    @property
    def has_id(self) -> bool:
        return "{" in self.path

    def call(self, client: httpx2.Client, id_: str = "x0") -> httpx2.Response:
        """Call it with the best body that is known; it need not be good to be refused for who asks."""
        body = None if self.method in ("get", "delete") else BODIES.get((self.method, self.path), {})
        return client.request(
            self.method, _PARAMETER.sub(id_, self.path.replace("{position}", "0")), json=body, timeout=60
        )


PIPELINE = {"steps": [{"name": "only", "model": "tiny", "input": {"prompt": "x"}}]}
BODIES: dict[tuple[str, str], object] = {
    ("post", "/v1/prompts/{prompt_id}/versions"): {"instructions": "Be brief."},
    ("put", "/v1/prompts/{prompt_id}/aliases/{alias}"): {"version": 1},
    ("post", "/v1/pipelines/{pipeline_id}/versions"): PIPELINE,
    ("put", "/v1/pipelines/{pipeline_id}/aliases/{alias}"): {"version": 1},
    ("post", "/v1/pipelines/{pipeline_id}/rollouts"): {"version": 2, "steps": [{"percent": 10, "hold_s": 60}]},
    ("post", "/v1/webhook_endpoints/{endpoint_id}/recover"): {"since": 0},
    ("post", "/v1/jobs/{job_id}/approvals/{approval_id}"): {"approve": True},
    ("put", "/v1/schedules/{schedule}"): {"name": "mine", "cron": "0 7 * * *", "job": PROMPT},
    ("put", "/v1/tools/{tool_id}"): {"url": "https://tools.example.com/other"},
    ("post", "/v1/uploads/{upload_id}/complete"): {"part_ids": ["part_x"]},
    ("post", "/v1/chat/completions/{completion_id}"): {"metadata": None},
    ("post", "/v1/conversations/{conversation_id}"): {"metadata": None},
    ("post", "/v1/vector_stores/{vector_store_id}/files"): {"file_id": "file_x"},
    ("post", "/v1/vector_stores/{vector_store_id}/files/{file_id}"): {"attributes": None},
    ("post", "/v1/vector_stores/{vector_store_id}/file_batches"): {"file_ids": ["file_x"]},
    ("post", "/v1/vector_stores/{vector_store_id}/search"): {"query": "x"},
    ("post", "/v1/conversations/{conversation_id}/items"): {"items": [{"role": "user", "content": "x"}]},
}
"""Of the operations on a thing that do not go so far as to look for it without a good body."""


def operations(app: FastAPI) -> list[Operation]:
    """Return every operation under /v1/, those that destroy last."""
    found = [
        Operation(method, path, tuple(scope for needed in told.get("security", ()) for scope in needed["HTTPBearer"]))
        for path, methods in app.openapi()["paths"].items()
        for method, told in methods.items()
        if path.startswith("/v1/")
    ]
    return sorted(found, key=lambda one: (_ORDER.index(one.method), one.path))


def test_every_route_says_which_scope_it_needs(server: ApiServer) -> None:
    documented = server.app.openapi()["paths"]
    assert {path for path in documented if not path.startswith("/v1/")} == OPEN
    assert not any("security" in told for path in OPEN for told in documented[path].values())
    for operation in operations(server.app):
        assert len(operation.scopes) == 1, (
            f"{operation}: take the principal by one of headrace.producer_api.access.auth's"
        )
        assert operation.scopes[0] in api_keys.SCOPES
    hidden = {route.path_format for route in server.app.routes if isinstance(route, APIRoute)} - set(documented)
    assert hidden == set(), "a route that is not in the document is not in this matrix"
    others = {getattr(route, "path", "?") for route in server.app.routes if not isinstance(route, APIRoute)}
    assert others - PAGES == set(), "a mount, a socket or a plain route is not in the document"


@pytest.mark.whole
def test_the_documentation_lists_every_route_with_its_scope(server: ApiServer) -> None:
    told = re.findall(r"^`([\w:]+)`\n\n```\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    listed = {
        f"{method} {path} {scope}"
        for scope, lines in told
        for methods, path in map(str.split, lines.splitlines())
        for method in methods.split(",")
    }
    there = {f"{one.method.upper()} {one.path} {one.scopes[0]}" for one in operations(server.app)}
    assert sorted(there - listed) == [], f"lines that {DOCS.name} lacks"
    assert sorted(listed - there) == [], f"lines of {DOCS.name} for no route"


def test_no_route_answers_without_a_good_key(
    server: ApiServer, make_client: MakeClient, db: Database, tenant: str, key: str, subtests: pytest.Subtests
) -> None:
    revoked = api_keys.create_key(db, tenant, "gone", api_keys.SCOPES, actor="tests")
    api_key_admin.revoke(db, tenant, "key_" + revoked.split("_")[1], actor="tests", grantor=None)
    closed = api_keys.create_tenant(db, "closed")
    of_disabled = api_keys.create_key(db, closed, "all", api_keys.SCOPES, actor="tests")
    tenants.set_disabled(db, "closed", disabled=True, actor="tests")
    bad = {
        "none": None,
        "malformed": "hr_",
        "foreign": "sk-123",
        "wrong secret": key[:-1] + ("a" if key[-1] != "a" else "b"),
        "revoked": revoked,
        "expired": api_keys.create_key(db, tenant, "old", api_keys.SCOPES, expires_s=-1, actor="tests"),
        "disabled": of_disabled,
    }
    for name, candidate in bad.items():
        client = make_client(candidate)
        refused = (403, "tenant_disabled") if name == "disabled" else (401, "invalid_api_key")
        with subtests.test(name):
            for operation in operations(server.app):
                response = operation.call(client)
                assert (response.status_code, error_of(response)["code"]) == refused, operation
                assert (response.status_code == 401) is ("www-authenticate" in response.headers), operation
    assert num_jobs(db) == 0


def test_each_route_needs_its_scope_and_no_other(
    server: ApiServer, make_client: MakeClient, db: Database, tenant: str, subtests: pytest.Subtests
) -> None:
    having = {
        scope: make_client(api_keys.create_key(db, tenant, scope, [scope], actor="t")) for scope in api_keys.SCOPES
    }
    lacking = {
        scope: make_client(
            api_keys.create_key(db, tenant, f"not {scope}", api_keys.SCOPES - {scope, "admin"}, actor="t")
        )
        for scope in api_keys.SCOPES
    }
    for operation in operations(server.app):
        (scope,) = operation.scopes
        with subtests.test(f"{operation.method} {operation.path}"):
            assert operation.call(having[scope]).status_code not in (401, 403, 500)
            refused = operation.call(lacking[scope])
            assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_scope")
            assert scope in error_of(refused)["message"]


def test_a_missing_scope_is_said_before_the_body_is_judged(make_client: MakeClient, db: Database, tenant: str) -> None:
    client = make_client(api_keys.create_key(db, tenant, "reader", ["jobs:read"], actor="tests"))
    response = client.post("/v1/jobs", json={"nonsense": 1})
    assert (response.status_code, error_of(response)["type"]) == (403, "permission_error")
    assert "jobs:write" in error_of(response)["message"]


def test_an_admin_may_do_all_in_its_tenant(make_client: MakeClient, db: Database, tenant: str) -> None:
    client = make_client(api_keys.create_key(db, tenant, "admin", ["admin"], actor="tests"))
    assert client.post("/v1/jobs", json=PROMPT).status_code == 202


def test_a_tenants_admin_does_not_operate(
    server: ApiServer, make_client: MakeClient, db: Database, tenant: str, subtests: pytest.Subtests
) -> None:
    """``admin`` includes every scope of its tenant, and can neither use nor grant those over what all tenants share."""
    admin = make_client(api_keys.create_key(db, tenant, "admin", ["admin"], actor="tests"))
    for operation in operations(server.app):
        with subtests.test(f"{operation.method} {operation.path}"):
            is_operation = operation.scopes[0] in ("queues:admin", "registry:admin")
            assert (operation.call(admin).status_code == 403) is is_operation
    assert {one["share"] for one in admin.get("/v1/queues").json()["data"]} <= {"own"}
    keys = "/v1/organization/api_keys"
    body = {"name": "more", "scopes": ["admin", "queues:admin"]}
    refused = admin.post(keys, json=body)
    assert (refused.status_code, error_of(refused)["param"]) == (403, "scopes")
    both = make_client(api_keys.create_key(db, tenant, "both", ["admin", "queues:admin"], actor="tests"))
    assert both.post(keys, json=body).status_code == 201


def test_no_id_in_a_path_is_an_error_of_the_server(
    server: ApiServer, make_client: MakeClient, db: Database, tenant: str, subtests: pytest.Subtests
) -> None:
    client = make_client(api_keys.create_key(db, tenant, "all", api_keys.SCOPES, actor="tests"))
    for operation in operations(server.app):
        if operation.has_id:
            with subtests.test(f"{operation.method} {operation.path}"):
                for id_ in ("x" * 301, "x%00", "x%0A", "%ED%A0%80"):
                    assert operation.call(client, id_).status_code < 500, id_


SHARED = {"/v1/models/", "/v1/queues/", "/v1/model_versions/", "/v1/rollouts/"}
"""What belongs to no tenant."""


def _ended_job(api: httpx2.Client, path: str = "/v1/jobs", body: object = PROMPT) -> str:
    """Make a job that is cancelled at once, so that following it ends."""
    made = api.post(path, json=body).raise_for_status().json()["id"]
    api.post(f"{path}/{made}/cancel").raise_for_status()
    return str(made)


def _file(api: httpx2.Client) -> str:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"model": "tiny", "prompt": "x"}}
    files = {"file": ("lines.jsonl", json.dumps(line).encode())}
    return str(api.post("/v1/files", files=files, data={"purpose": "batch"}).raise_for_status().json()["id"])


def _made(path: str, body: dict[str, object]) -> Callable[[httpx2.Client, Database], str]:
    return lambda api, _: str(api.post(path, json=body).raise_for_status().json()["id"])


def _batch(api: httpx2.Client, _: Database) -> str:
    body = {"input_file_id": _file(api), "endpoint": "/v1/completions", "completion_window": "24h"}
    return str(api.post("/v1/batches", json=body).raise_for_status().json()["id"])


def _delivery(api: httpx2.Client, _: Database) -> str:
    """An event for the job's own URL: an endpoint would be deleted before it."""
    job_id = submit(api, webhook={"url": "https://hooks.example.com/own"})
    api.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    return str(api.get("/v1/webhook_deliveries", params={"job_id": job_id}).json()["data"][0]["id"])


def _celery_task(api: httpx2.Client, _: Database) -> str:
    body = {"id": "task-1", "message": {}, "job": PROMPT}
    return str(api.post("/v1/celery/tasks", json=body).raise_for_status().json()["id"])


def _stored_chat(api: httpx2.Client, db: Database) -> str:
    """Make a stored chat completion with an answer, without a worker."""
    job_id = submit(api)
    with db.begin() as connection:
        connection.execute(
            text("""
            UPDATE jobs SET is_stored_chat = true, state = 'succeeded', completed_at = now(),
                payload = '{"input": {"messages": []}}', output = '{"text": "hi", "finish_reason": "stop"}'
            WHERE id = :id"""),
            {"id": job_id},
        )
    return f"chatcmpl-{job_id.removeprefix('job_')}"


def _vector_store(api: httpx2.Client, db: Database) -> str:
    owner = api_keys.authenticate(db, api.headers["authorization"].removeprefix("Bearer "))
    return vector_stores.create(db, owner.tenant_id, StoreModel("tiny", 1, 8)).id


def _video(api: httpx2.Client, db: Database) -> str:
    register(db, "filmer", "fake-video-pipeline", "auto", actor="tests")
    return str(api.post("/v1/videos", json={"model": "filmer", "prompt": "a mill"}).json()["id"])


MAKERS: dict[str, Callable[[httpx2.Client, Database], str]] = {
    "/v1/jobs/": lambda api, _: _ended_job(api),
    "/v1/dead_letters/": lambda api, db: bury(db, submit(api)),
    "/v1/responses/": lambda api, _: _ended_job(
        api, "/v1/responses", {"model": "tiny", "input": "x", "background": True}
    ),
    "/v1/celery/tasks/": _celery_task,
    "/v1/prompts/": _made("/v1/prompts", {"instructions": "Be brief."}),
    "/v1/pipelines/": _made("/v1/pipelines", {"name": "mine", **PIPELINE}),
    "/v1/files/": lambda api, _: _file(api),
    "/v1/chat/completions/": _stored_chat,
    "/v1/conversations/": _made("/v1/conversations", {}),
    "/v1/vector_stores/": _vector_store,
    "/v1/uploads/": _made("/v1/uploads", {"bytes": 1, "filename": "a", "mime_type": "text/plain", "purpose": "batch"}),
    "/v1/batches/": _batch,
    "/v1/messages/batches/": _made("/v1/messages/batches", {"requests": [{"custom_id": "a", "params": {}}]}),
    "/v1/videos/": _video,
    "/v1/schedules/": _made("/v1/schedules", {"name": "mine", "cron": "0 6 * * *", "job": PROMPT}),
    "/v1/tools/": _made("/v1/tools", {"name": "weather", "url": "https://tools.example.com/"}),
    "/v1/webhook_endpoints/": _made("/v1/webhook_endpoints", {"url": "https://hooks.example.com/mine"}),
    "/v1/webhook_deliveries/": _delivery,
    "/v1/organization/api_keys/": _made("/v1/organization/api_keys", {"name": "mine", "scopes": ["jobs:read"]}),
}
"""How a tenant comes by a thing with an id, by where its routes are."""


def test_nobody_meets_another_tenants_things(
    server: ApiServer, make_client: MakeClient, other_key: str, db: Database, tenant: str, subtests: pytest.Subtests
) -> None:
    owner = make_client(api_keys.create_key(db, tenant, "owner", api_keys.SCOPES, actor="tests"))
    stranger = make_client(other_key)
    of_things = [one for one in operations(server.app) if one.has_id and one.collection not in SHARED]
    collections = {one.collection for one in of_things}
    unknown = collections - set(MAKERS)
    assert unknown == set(), "say in MAKERS how a tenant comes by such a thing, or in SHARED that it is nobody's"
    ids = {collection: make(owner, db) for collection, make in MAKERS.items() if collection in collections}
    for operation in of_things:
        with subtests.test(f"{operation.method} {operation.path}"):
            response = operation.call(stranger, ids[operation.collection])
            assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
    for operation in operations(server.app):
        if operation.method == "get" and not operation.has_id:
            answer = operation.call(stranger).text
            assert not [id_ for id_ in ids.values() if id_ in answer], operation
    named = {"model": "tiny", "input": "x", "previous_response_id": ids["/v1/responses/"]}
    assert stranger.post("/v1/responses", json=named).status_code == 404
    named = {"input_file_id": ids["/v1/files/"], "endpoint": "/v1/completions", "completion_window": "24h"}
    assert stranger.post("/v1/batches", json=named).status_code == 404
    # And all of it is there for its owner, untouched.
    for operation in of_things:
        if operation.path.count("{") > 1:
            continue  # a thing within the thing, which has another id
        with subtests.test(f"owner: {operation.method} {operation.path}"):
            assert operation.call(owner, ids[operation.collection]).status_code not in (404, 410)


@pytest.mark.uses("webhooks")
def test_a_tenants_secrets_and_deliveries_are_its_own(
    api: httpx2.Client, make_client: MakeClient, other_key: str
) -> None:
    stranger, job_id = make_client(other_key), submit(api, webhook={"url": "https://hooks.example.com/"})
    api.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    assert len(api.get("/v1/webhook_deliveries").json()["data"]) == 1
    assert stranger.get("/v1/webhook_deliveries", params={"job_id": job_id}).json()["data"] == []
    assert stranger.get("/v1/webhook_secret").json() != api.get("/v1/webhook_secret").json()


async def test_a_revoked_key_works_for_ten_seconds_at_most(db: Database, tenant: str, key: str) -> None:
    now = 0.0
    ring = Authenticator(db, clock=lambda: now)
    principal = await ring.principal(f"Bearer {key}")
    api_key_admin.revoke(db, tenant, principal.key_id, actor="tests", grantor=None)
    now = KEEP_S - 0.001
    assert await ring.principal(f"bearer {key}") == principal
    now = KEEP_S
    assert KEEP_S <= 10
    with pytest.raises(Unauthenticated):
        await ring.principal(f"Bearer {key}")


async def test_a_tenant_that_is_disabled_is_forgotten_at_once(db: Database, tenant: str, other_key: str) -> None:
    """A change message from another process drops the tenant's keys, and no other's."""
    ring = Authenticator(db, clock=lambda: 0.0)
    of_tenant = [api_keys.create_key(db, tenant, name, api_keys.SCOPES, actor="tests") for name in ("one", "two")]
    for each in (*of_tenant, other_key):
        await ring.principal(f"Bearer {each}")
    tenants.set_disabled(db, "acme", disabled=True, actor="tests")
    assert await ring.principal(f"Bearer {of_tenant[0]}"), "it is remembered for ten seconds if nothing is heard"
    ring.forget(tenant)
    for each in of_tenant:
        with pytest.raises(Forbidden, match="disabled"):
            await ring.principal(f"Bearer {each}")
    db.close()
    assert await ring.principal(f"Bearer {other_key}"), "that one is not looked up again"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic aGk6aGk=", "hr_1_2"])
async def test_a_header_without_a_key(db: Database, header: str | None) -> None:
    with pytest.raises(Unauthenticated, match="Bearer hr_"):
        await Authenticator(db).principal(header)

"""API keys by the routes of their tenant's admins, and what a key with a list of models may ask for."""

import json
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from headrace.producer_api.access import auth
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tenants import api_key_admin, api_keys
from headrace.store.tenants.api_keys import OPERATION_SCOPES, SCOPES
from headrace.store.tenants.tenant_limits import Limits, SetBy, set_limits
from tests.processes import wait_for
from tests.producer_api.calling import CHAT, PROMPT, bury, error_of, num_jobs, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.serving import ApiServer, serving

KEYS = "/v1/organization/api_keys"


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hears of no change remembers keys for as long as a test takes. Use it before the server starts."""
    monkeypatch.setattr(auth, "KEEP_S", 3600.0)


@pytest.fixture
def admin_key(db: Database, tenant: str) -> str:
    return api_keys.create_key(db, tenant, "first admin", SCOPES - OPERATION_SCOPES, actor="tests")


@pytest.fixture
def admin(make_client: MakeClient, admin_key: str) -> httpx2.Client:
    return make_client(admin_key)


def id_of(plaintext: str) -> str:
    return f"key_{plaintext.split('_')[1]}"


def make(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    response = client.post(KEYS, json={"name": "new", "scopes": ["jobs:write", "jobs:read"]} | fields)
    assert response.status_code == 201, response.text
    assert response.headers["cache-control"] == "no-store"
    return dict(response.json())


def refusal(response: httpx2.Response) -> tuple[int, str, str | None]:
    error = error_of(response)
    return response.status_code, error["code"], error["param"]


def test_a_key_is_shown_once_and_may_what_it_says(
    admin: httpx2.Client, make_client: MakeClient, db: Database, tenant: str
) -> None:
    made = make(admin, name="ci", scopes=["jobs:write"], models=["tiny"], expires_in_s=3600)
    value = made.pop("value")
    assert (made["name"], made["scopes"], made["models"]) == ("ci", ["jobs:write"], ["tiny"])
    assert made["expires_at"] - made["created_at"] == 3600
    assert (made["last_used_at"], made["revoked_at"], made["replaced_by"]) == (None, None, None)
    assert make_client(value).post("/v1/jobs", json=PROMPT).status_code == 202
    assert refusal(make_client(value).get("/v1/jobs"))[:2] == (403, "insufficient_scope")
    seen = admin.get(f"{KEYS}/{made['id']}").json()
    assert seen.pop("last_used_at") % 60 == 0
    assert seen == {name: field for name, field in made.items() if name != "last_used_at"}
    listed = admin.get(KEYS)
    assert value.split("_", 2)[2] not in listed.text
    assert [key["name"] for key in listed.json()["data"]] == ["ci", "first admin"]
    entry = list_entries(db, tenant)[0]
    assert (entry.action, entry.resource) == ("api_key.created", made["id"])
    assert entry.actor == id_of(str(admin.headers["authorization"]).removeprefix("Bearer "))
    assert value.split("_", 2)[2] not in str(entry)


def test_pages_of_keys(admin: httpx2.Client) -> None:
    ids = [make(admin, name=f"k{n}")["id"] for n in range(3)]
    first = admin.get(KEYS, params={"limit": 2}).json()
    assert ([key["id"] for key in first["data"]], first["has_more"]) == ([ids[2], ids[1]], True)
    rest = admin.get(KEYS, params={"limit": 2, "after": first["last_id"]}).json()
    assert ([key["name"] for key in rest["data"]], rest["has_more"]) == (["k0", "first admin"], False)


NONSENSE: list[tuple[dict[str, Any], str | None]] = [
    ({"scopes": ["jobs:delete"]}, "scopes"),
    ({"scopes": []}, "scopes"),
    ({"name": ""}, "name"),
    ({"models": []}, "models"),
    ({"models": ["tiny@1"]}, "models"),
    ({"expires_at": 1_000_000_000}, "expires_at"),
    ({"expires_in_s": 60, "expires_at": 4_000_000_000}, None),
    ({"expires_in_s": 0}, "expires_in_s"),
    ({"secret": "mine"}, "secret"),
]


def test_a_key_that_makes_no_sense_is_refused(admin: httpx2.Client, subtests: pytest.Subtests) -> None:
    for changes, param in NONSENSE:
        with subtests.test(str(changes)):
            response = admin.post(KEYS, json={"name": "x", "scopes": ["jobs:read"]} | changes)
            assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert len(admin.get(KEYS).json()["data"]) == 1


def test_a_key_gives_no_right_that_it_does_not_have(
    admin: httpx2.Client, admin_key: str, make_client: MakeClient
) -> None:
    narrow = make(admin, scopes=["admin"], models=["tiny"], expires_in_s=3600)
    client = make_client(narrow["value"])
    own = {"models": ["tiny"], "expires_at": narrow["expires_at"]}
    assert make(client, **own)["models"] == ["tiny"]
    body = {"name": "x", "scopes": ["jobs:read"], **own}
    strong = f"{KEYS}/{id_of(admin_key)}"
    for response, refused in (
        (client.post(KEYS, json=body | {"models": None}), (403, "model_not_allowed", "models")),
        (client.post(KEYS, json=body | {"models": ["tiny", "big"]}), (403, "model_not_allowed", "models")),
        (client.post(KEYS, json=body | {"expires_at": None}), (403, "expiry_not_allowed", "expires_at")),
        (
            client.post(KEYS, json=body | {"expires_at": body["expires_at"] + 60}),
            (403, "expiry_not_allowed", "expires_at"),
        ),
        (client.post(f"{strong}/rotate"), (403, "model_not_allowed", "models")),
        (client.patch(strong, json={"scopes": ["admin", "jobs:read"]}), (403, "model_not_allowed", "models")),
        (client.patch(f"{KEYS}/{narrow['id']}", json={"models": None}), (403, "model_not_allowed", "models")),
        (client.patch(f"{KEYS}/{narrow['id']}", json={"expires_at": None}), (403, "expiry_not_allowed", "expires_at")),
    ):
        assert refusal(response) == refused
    assert len(admin.get(KEYS).json()["data"]) == 3


@pytest.mark.usefixtures("remembered")
def test_a_key_that_was_revoked_a_moment_ago_makes_no_keys(
    admin: httpx2.Client, make_client: MakeClient, db: Database, tenant: str
) -> None:
    second = make(admin, scopes=["admin"])
    client = make_client(second["value"])
    assert client.get(KEYS).is_success
    api_key_admin.revoke(db, tenant, second["id"], actor="operator", grantor=None)
    # The process has not heard of it and remembers the principal.
    assert client.get(KEYS).is_success
    assert refusal(client.post(KEYS, json={"name": "x", "scopes": ["admin"]}))[:2] == (401, "invalid_api_key")


def test_a_key_is_changed(admin: httpx2.Client, make_client: MakeClient, db: Database, tenant: str) -> None:
    made = make(admin, expires_in_s=3600)
    client, path = make_client(made["value"]), f"{KEYS}/{made['id']}"
    assert client.post("/v1/jobs", json=PROMPT).status_code == 202
    changed = admin.patch(path, json={"name": "narrow", "scopes": ["jobs:read"], "models": ["other"]}).json()
    assert (changed["name"], changed["scopes"], changed["models"]) == ("narrow", ["jobs:read"], ["other"])
    assert changed["expires_at"] == made["expires_at"]
    assert refusal(client.post("/v1/jobs", json=PROMPT))[:2] == (403, "insufficient_scope")
    assert admin.patch(path, json={"models": None, "expires_at": None}).json()["expires_at"] is None
    assert admin.get(path).json()["models"] is None
    assert [entry.action for entry in list_entries(db, tenant)[:2]] == ["api_key.updated"] * 2
    entry = list_entries(db, tenant)[0]
    assert entry.before_hash
    assert entry.before_hash != entry.after_hash


def test_the_old_key_works_on_for_the_overlap(
    admin: httpx2.Client, make_client: MakeClient, db: Database, tenant: str
) -> None:
    made = make(admin, models=["tiny"])
    assert refusal(admin.post(f"{KEYS}/{made['id']}/rotate", json={"overlap_s": False}))[0] == 400
    new = admin.post(f"{KEYS}/{made['id']}/rotate", json={"overlap_s": 60}).json()
    assert [new[name] for name in ("name", "scopes", "models", "expires_at")] == ["new", made["scopes"], ["tiny"], None]
    old = new["replaces"]
    assert (old["id"], old["replaced_by"]) == (made["id"], new["id"])
    assert 0 <= old["expires_at"] - new["created_at"] - 60 <= 1
    for value in (made["value"], new["value"]):
        assert make_client(value).get("/v1/jobs").is_success
    assert refusal(admin.post(f"{KEYS}/{made['id']}/rotate"))[:2] == (409, "key_rotated")
    third = admin.post(f"{KEYS}/{new['id']}/rotate", json={"overlap_s": 0, "expires_in_s": 3600}).json()
    assert third["expires_at"] - third["created_at"] == 3600
    assert make_client(new["value"]).get("/v1/jobs").status_code == 401
    assert make_client(third["value"]).get("/v1/jobs").is_success
    fourth = admin.post(f"{KEYS}/{third['id']}/rotate").json()
    assert fourth["expires_at"] == third["expires_at"]
    assert fourth["replaces"]["expires_at"] == third["expires_at"], "a day would be longer than it had"
    assert list_entries(db, tenant)[0].action == "api_key.rotated"


def test_limits_go_with_a_rotation_and_the_operators_with_every_key_made(
    admin: httpx2.Client, make_client: MakeClient, db: Database, tenant: str
) -> None:
    second = make(admin, scopes=["admin"])
    for set_by, limits in ((SetBy.OPERATOR, Limits(concurrent_jobs=5)), (SetBy.TENANT, Limits(queued_tokens=7))):
        set_limits(db, tenant, second["id"], limits, set_by=set_by, actor="tests")
    by_it = make(make_client(second["value"]))
    rotated = admin.post(f"{KEYS}/{second['id']}/rotate").json()

    def limits_of(key: dict[str, Any]) -> tuple[object, object]:
        told = admin.get(f"{KEYS}/{key['id']}/limits").json()
        return told["operator"]["concurrent_jobs"], told["own"]["queued_tokens"]

    assert [limits_of(key) for key in (by_it, rotated, make(admin))] == [(5, None), (5, 7), (None, None)]


def test_the_last_admin_stays(admin: httpx2.Client, admin_key: str, make_client: MakeClient) -> None:
    path = f"{KEYS}/{id_of(admin_key)}"

    def all_refused() -> None:
        for response in (
            admin.delete(path),
            admin.patch(path, json={"scopes": ["jobs:read"]}),
            admin.patch(path, json={"expires_in_s": 60}),
            admin.patch(path, json={"models": ["tiny"]}),
            admin.post(f"{path}/rotate", json={"overlap_s": 0, "expires_in_s": 60}),
        ):
            assert refusal(response)[:2] == (409, "last_admin_key")

    all_refused()
    soon_gone = make(admin, scopes=["admin"], expires_in_s=3600)
    make(admin, scopes=["admin"], models=["tiny"])
    all_refused()
    assert admin.patch(path, json={"name": "renamed"}).is_success
    rotated = admin.post(f"{path}/rotate").json()
    successor = make_client(rotated["value"])
    assert successor.delete(path).json() == {"id": id_of(admin_key), "object": "organization.api_key", "deleted": True}
    assert admin.get(KEYS).status_code == 401
    assert successor.get(path).json()["revoked_at"]
    assert successor.delete(path).status_code == 404
    assert successor.delete(f"{KEYS}/{soon_gone['id']}").is_success
    make(successor, scopes=["admin"], expires_in_s=8 * 86_400)
    assert successor.delete(f"{KEYS}/{rotated['id']}").is_success, "the other one has all rights for the next 7 days"


@pytest.mark.usefixtures("remembered")
def test_a_change_reaches_the_other_processes_without_waiting(admin: httpx2.Client, settings: Settings) -> None:
    made = make(admin)
    with serving(settings) as other, httpx2.Client(base_url=other.url, timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {made['value']}"
        assert client.get("/v1/jobs").is_success
        wait_for(lambda: other.runtime.hub.is_connected, "the other process hears of changes")
        admin.delete(f"{KEYS}/{made['id']}").raise_for_status()
        wait_for(lambda: client.get("/v1/jobs").status_code == 401, "the other process has heard of it")


@pytest.fixture
def limited(make_client: MakeClient, db: Database, tenant: str, encoder: ModelVersion) -> httpx2.Client:
    key = api_keys.create_key(db, tenant, "limited", SCOPES - {"admin"}, models=[encoder.model], actor="tests")
    return make_client(key)


def test_a_list_of_models_holds_wherever_one_is_asked_for(
    limited: httpx2.Client, api: httpx2.Client, db: Database, subtests: pytest.Subtests
) -> None:
    dead = bury(db, submit(api))
    api.post("/v1/jobs", json=PROMPT, headers={"Idempotency-Key": "k"}).raise_for_status()
    before = num_jobs(db)
    asked: list[tuple[str, object, dict[str, str]]] = [
        ("/v1/jobs", PROMPT, {}),
        ("/v1/jobs", PROMPT | {"model": "tiny@1"}, {}),
        ("/v1/jobs", PROMPT | {"model": "unknown"}, {}),
        ("/v1/jobs", PROMPT, {"Idempotency-Key": "k"}),
        ("/v1/chat/completions", CHAT, {}),
        ("/v1/chat/completions", CHAT | {"stream": True}, {}),
        ("/v1/completions", {"model": "tiny@default", "prompt": "x"}, {}),
        ("/v1/embeddings", {"model": "tiny", "input": "x"}, {}),
        ("/v1/responses", {"model": "tiny", "input": "x"}, {}),
        ("/v1/responses/input_tokens", {"model": "tiny", "input": "x"}, {}),
        ("/v1/messages", CHAT | {"max_tokens": 8}, {}),
        ("/v1/messages/count_tokens", CHAT, {}),
        ("/v1/moderations", {"input": "x"}, {}),
        (f"/v1/dead_letters/{dead}/replay", None, {}),
    ]
    for path, body, headers in asked:
        with subtests.test(f"{path} {body} {headers}"):
            response = limited.post(path, json=body, headers=headers)
            assert refusal(response) == (403, "model_not_allowed", "model")
            assert error_of(response)["type"] == "permission_error"
            assert "org/vectors" in error_of(response)["message"]
    assert limited.post("/v1/dead_letters/replay", json={}).json()["data"] == []
    assert num_jobs(db) == before
    assert {model["id"].partition("@")[0] for model in limited.get("/v1/models").json()["data"]} == {"org/vectors"}
    assert limited.get("/v1/models/org/vectors@1").is_success
    assert refusal(limited.get("/v1/models/tiny"))[:2] == (403, "model_not_allowed")
    vectors = {"task": "embed", "model": "org/vectors@1", "input": {"texts": ["x"]}}
    assert limited.post("/v1/jobs", json=vectors).status_code == 202
    assert api.post("/v1/dead_letters/replay", json={}).json()["data"][0]["id"] == dead


def test_a_retry_joins_no_job_of_a_model_that_was_taken_from_the_key(
    admin: httpx2.Client, make_client: MakeClient
) -> None:
    made = make(admin)
    client = make_client(made["value"])
    client.post("/v1/jobs", json=PROMPT).raise_for_status()
    admin.patch(f"{KEYS}/{made['id']}", json={"models": ["other"]}).raise_for_status()
    again = client.post("/v1/jobs", json=PROMPT, headers={"x-stainless-retry-count": "1"})
    assert refusal(again)[:2] == (403, "model_not_allowed")


def test_each_line_of_a_batch_may_use_only_the_keys_models(limited: httpx2.Client, server: ApiServer) -> None:
    def line(model: str) -> bytes:
        fields = {"custom_id": model, "method": "POST", "url": "/v1/embeddings", "body": {"model": model, "input": "x"}}
        return json.dumps(fields).encode()

    content = b"\n".join([line("org/vectors"), line("tiny@1")])
    with OpenAI(base_url=f"{server.url}/v1", api_key=limited.headers["authorization"][7:]) as client:
        file = client.files.create(file=("lines.jsonl", content), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
        wait_for(lambda: client.batches.retrieve(made.id).status == "failed", "the batch is refused")
        (error,) = (client.batches.retrieve(made.id).errors or pytest.fail("no errors")).data or []
    assert (error.code, error.line, error.param) == ("model_not_allowed", 2, "body.model")

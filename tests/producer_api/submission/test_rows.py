"""How many rows a tenant may make that nothing takes away again, and how many parts a form has at most."""

import httpx2
import pytest

from headrace.features.policy import policies
from headrace.store.db.database import Database
from headrace.store.tenants import api_key_admin, api_keys
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient

POLICY = {"document": {"version": 1, "rules": [{"id": "a", "kinds": ["email"], "action": "block"}]}}


@pytest.fixture
def admin(make_client: MakeClient, db: Database, tenant: str) -> httpx2.Client:
    return make_client(api_keys.create_key(db, tenant, "admin", ["admin"], actor="tests"))


def _refused(response: httpx2.Response, words: str) -> None:
    assert response.status_code == 409
    assert words in error_of(response)["message"]


def test_a_tenant_has_only_so_many_policies_and_keys(admin: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "MAX_MODELS", 2)
    for model in ("a", "b", "a"):
        assert admin.put("/v1/policies", json=POLICY | {"model": model}).status_code == 200
    _refused(admin.put("/v1/policies", json=POLICY | {"model": "c"}), "2 models")
    monkeypatch.setattr(policies, "MAX_VERSIONS", 3)
    _refused(admin.put("/v1/policies", json=POLICY | {"model": "a"}), "3 ")

    monkeypatch.setattr(api_key_admin, "MAX_KEYS", 3)
    asked = {"name": "x", "scopes": ["jobs:read"]}
    made = [admin.post("/v1/organization/api_keys", json=asked).json()["id"] for _ in range(2)]
    _refused(admin.post("/v1/organization/api_keys", json=asked), "3 keys")
    _refused(admin.post(f"/v1/organization/api_keys/{made[0]}/rotate"), "3 keys")
    assert admin.delete(f"/v1/organization/api_keys/{made[0]}").status_code == 200
    assert admin.post("/v1/organization/api_keys", json=asked).status_code == 201


def test_a_form_has_only_so_many_parts(api: httpx2.Client) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
    many = {
        "parts of one name": part * 33,
        "parts without a name": b"--b\r\nX: y\r\n\r\n\r\n" * 33,
    }
    for body in many.values():
        response = api.post("/v1/files", content=body + b"--b--\r\n", headers=headers)
        assert response.status_code == 400
        assert "more than" in error_of(response)["message"]

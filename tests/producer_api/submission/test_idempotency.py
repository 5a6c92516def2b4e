"""The stored fingerprints of requests, and the content that could be guessed from them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import SCOPES, create_key
from tests.producer_api.calling import error_of
from tests.producer_api.serving import serving

POLICY = {"document": {"version": 1, "rules": [{"id": "ssn", "kinds": ["us_ssn"], "action": "redact"}]}}
SSN, OTHER_SSN = "536-22-1234", "536-22-4321"
OLD, NEW = "o" * 32, "n" * 32
KEYED, UNKEYED = {"digest_keys": (OLD,)}, dict[str, Any]()

pytestmark = pytest.mark.usefixtures("model")


def _body(ssn: str) -> dict[str, Any]:
    return {"model": "tiny", "input": {"prompt": f"my SSN is {ssn}"}, "user": f"SSN {ssn}"}


@contextmanager
def _api(settings: Settings, db: Database, tenant: str, **changes: Any) -> Iterator[httpx2.Client]:
    key = create_key(db, tenant, "all", SCOPES, actor="tests")
    with (
        serving(settings.model_copy(update=changes)) as server,
        httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client,
    ):
        assert client.put("/v1/policies", json=POLICY).status_code == 200
        yield client


def _post(client: httpx2.Client, ssn: str, **headers: str) -> httpx2.Response:
    return client.post("/v1/jobs", json=_body(ssn), headers=headers)


def _stored(db: Database, job_id: str) -> tuple[str | None, str, str | None]:
    statement = text("""
        SELECT jobs.fingerprint, user_id, held.fingerprint AS body
        FROM jobs LEFT JOIN idempotency_keys AS held ON held.job_id = jobs.id WHERE jobs.id = :id""")
    with db.begin() as connection:
        row = connection.execute(statement, {"id": job_id}).one()
    return row.fingerprint, row.user_id, row.body


def _digests(settings: Settings, db: Database, tenant: str, **changes: Any) -> list[tuple[str | None, str, str | None]]:
    with _api(settings, db, tenant, **changes) as client:
        made = [_post(client, ssn, **{"Idempotency-Key": uuid4().hex}) for ssn in (SSN, OTHER_SSN)]
        assert [one.status_code for one in made] == [202, 202], made[0].text
        return [_stored(db, one.json()["id"]) for one in made]


@pytest.mark.usefixtures("turned_seal")
def test_digests_of_what_a_policy_took_out_need_a_key(settings: Settings, db: Database, tenant: str) -> None:
    found = [
        _digests(settings, db, tenant, **changes)
        for changes in (KEYED, {"digest_keys": (NEW,)}, {"encryption_keys": "k1:"})
    ]
    # Nothing of the same request is the same under another key, and of two requests under one.
    for column in range(3):
        assert len({stored[column] for two in found for stored in two} - {None}) == 6
    assert all(user.startswith("user_") for two in found for _, user, _ in two)


def test_without_a_key_nothing_is_kept_of_what_a_policy_took_out(settings: Settings, db: Database, tenant: str) -> None:
    first, second = _digests(settings, db, tenant)
    assert first == second, "it tells nothing of what was taken out"
    assert first[:2] == (None, "SSN <US_SSN_1>")
    with _api(settings, db, tenant) as client:
        named = _post(client, SSN, **{"Idempotency-Key": f"SSN {SSN}"})
        assert (named.status_code, error_of(named)["param"]) == (400, "Idempotency-Key")
        repeated = _post(client, SSN, **{"Idempotency-Key": "order 1"}).json()["id"]
        assert _post(client, SSN, **{"Idempotency-Key": "order 1"}).json()["id"] == repeated


def _after_changes_of_keys(
    settings: Settings, db: Database, tenant: str, key: str, first: str
) -> Iterator[httpx2.Client]:
    """An API after each change of the keys that there may be, from the one key at first."""
    rotated = {"encryption_keys": f"k2:,{first}"}
    for changes in ({"encryption_keys": first}, rotated, {"encryption_keys": first, "digest_keys": (OLD,)}):
        with _api(settings, db, tenant, **changes) as after:
            after.headers["authorization"] = key
            yield after


@pytest.mark.usefixtures("turned_seal")
def test_a_request_is_known_by_every_process_and_after_the_keys_changed(
    settings: Settings, db: Database, tenant: str
) -> None:
    named, retried = {"Idempotency-Key": f"SSN {SSN}"}, {"x-stainless-retry-count": "1"}
    first = "k1:"
    with _api(settings, db, tenant, encryption_keys=first) as before:
        keyed, plain = _post(before, SSN, **named).json()["id"], _post(before, OTHER_SSN).json()["id"]
        key = before.headers["authorization"]
    for after in _after_changes_of_keys(settings, db, tenant, key, first):
        assert _post(after, SSN, **named).json()["id"] == keyed
        assert _post(after, OTHER_SSN, **retried).json()["id"] == plain
        other = _post(after, OTHER_SSN, **named)
        assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_key_reused")


@pytest.mark.usefixtures("turned_seal")
@pytest.mark.uses("batches")
def test_a_batch_is_known_after_the_keys_changed(settings: Settings, db: Database, tenant: str) -> None:
    named, first = {"Idempotency-Key": f"SSN {SSN}"}, "k1:"
    with _api(settings, db, tenant, encryption_keys=first) as before:
        files: Any = {"file": ("a.jsonl", b"{}\n")}
        file_id = before.post("/v1/files", data={"purpose": "batch"}, files=files).json()["id"]
        batch = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch_id = before.post("/v1/batches", json=batch, headers=named).json()["id"]
        key = before.headers["authorization"]
    for after in _after_changes_of_keys(settings, db, tenant, key, first):
        assert after.post("/v1/batches", json=batch, headers=named).json()["id"] == batch_id


def test_names_of_fields_that_are_not_known_are_not_stored(settings: Settings, db: Database, tenant: str) -> None:
    function = {"type": "function", "name": "f", "parameters": {"type": "object"}, SSN: 1}
    body = {
        "model": "tiny",
        "input": "hi",
        "background": True,
        "tools": [function],
        "tool_choice": {"type": "function", "name": "f", SSN: 1},
        "text": {SSN: 1, "format": {"type": "text", SSN: {"a": SSN}}},
    }
    with _api(settings, db, tenant) as client:
        made = client.post("/v1/responses", json=body)
        assert made.status_code == 200, made.text
        assert SSN not in made.text
        assert made.json()["tool_choice"] == {"type": "function", "name": "f"}
    with db.begin() as connection:
        (request,) = connection.execute(text("SELECT CAST(request AS text) FROM responses")).scalars()
    assert SSN not in request

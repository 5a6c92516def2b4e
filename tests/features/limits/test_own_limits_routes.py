"""An organization's limits, retention and keys over HTTP: whole answers, and the calls of the store."""

from decimal import Decimal
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from headrace.features.retention.retention import Retention, set_retention
from headrace.store import audit_log as audit
from headrace.store.db.database import Database
from headrace.store.tenants import api_keys
from headrace.store.tenants.tenant_limits import Limits, SetBy, set_limits
from tests.producer_api.calling import error_of, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.organization.test_key_routes import KEYS, id_of

BASE = "/v1/organization"
NO_LIMITS: dict[str, Any] = dict.fromkeys(
    (
        "requests_per_minute",
        "input_tokens_per_minute",
        "concurrent_jobs",
        "queued_tokens",
        "monthly_cost",
        "live_batches",
        "concurrent_streams",
    )
)
NO_TIMES = dict.fromkeys(("inputs_days", "outputs_days", "deliveries_days", "files_days"))


@pytest.fixture
def admin(make_client: MakeClient, db: Database, tenant: str) -> httpx2.Client:
    return make_client(api_keys.create_key(db, tenant, "boss", api_keys.SCOPES, actor="tests"))


def test_limits_are_told_whole(api: httpx2.Client, admin: httpx2.Client, db: Database, tenant: str, key: str) -> None:
    mine = {"requests_per_minute": 30, "monthly_cost": Decimal("2.5")}
    set_limits(db, tenant, None, Limits(concurrent_jobs=9, **mine), set_by=SetBy.OPERATOR, actor="tests")
    own = {"concurrent_jobs": 4, "monthly_cost": 0.1, "concurrent_streams": 3}
    told = admin.put(f"{BASE}/limits", json=own).json()
    assert told["limits"] | {"live_batches": None, "input_tokens_per_minute": None, "queued_tokens": None} == (
        NO_LIMITS | {"requests_per_minute": 30, "concurrent_jobs": 4, "monthly_cost": 0.1, "concurrent_streams": 3}
    )
    assert told["own"] == NO_LIMITS | own
    assert (told["operator"]["concurrent_jobs"], told["operator"]["monthly_cost"]) == (9, 2.5)
    submit(api)
    told = api.get(f"{BASE}/limits").json()
    used = told.pop("used")
    assert (told["object"], told["id"]) == ("organization.limits", tenant)
    assert (used["concurrent_jobs"], used["cost"], used["live_batches"]) == (1, 0.0, 0)
    with db.begin() as connection:
        month = connection.execute(
            text("SELECT extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month')")
        ).scalar_one()
    assert used["month_ends_at"] == int(month)
    of_key = api.get(f"{KEYS}/{id_of(key)}/limits").json()
    assert (of_key["object"], of_key["id"]) == ("organization.api_key.limits", id_of(key))
    assert of_key["used"]["concurrent_jobs"] == 1
    assert of_key["own"] == NO_LIMITS
    refused = admin.put(f"{BASE}/limits", json={"concurrent_jobs": 10})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "concurrent_jobs")


def test_retention_is_the_shorter_of_two(
    api: httpx2.Client, admin: httpx2.Client, make_client: MakeClient, db: Database, tenant: str, other_key: str
) -> None:
    path = f"{BASE}/retention"
    given = Retention(inputs_s=2 * 86_400, outputs_s=86_400)
    set_retention(db, tenant, given, set_by=SetBy.OPERATOR, actor="tests")
    told = admin.put(path, json={"inputs_days": 0.5, "files_days": 3}).json()
    assert (told["object"], told["id"]) == ("organization.retention", tenant)
    assert told["own"] == NO_TIMES | {"inputs_days": 0.5, "files_days": 3}
    assert (told["operator"]["inputs_days"], told["operator"]["outputs_days"]) == (2, 1)
    effective = told["retention"]
    assert (effective["inputs_days"], effective["outputs_days"], effective["files_days"]) == (0.5, 1, 3)
    assert api.get(path).json() == told
    longer = admin.put(path, json={"inputs_days": 2.5})
    assert (longer.status_code, error_of(longer)["param"]) == (400, "inputs_days")
    assert api.put(path, json={}).status_code == 403
    assert admin.put(path, json={"outputs_days": 0}).json()["own"] == NO_TIMES | {"outputs_days": 0}
    assert make_client(other_key).get(path).json()["own"] == NO_TIMES
    (newest, *_) = audit.list_entries(db, tenant)
    assert (newest.action, newest.actor) == ("retention.set", id_of(str(admin.headers["authorization"])[7:]))

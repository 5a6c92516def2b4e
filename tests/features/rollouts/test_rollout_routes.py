"""Rollouts over HTTP: started, changed on a condition, and refused."""

import httpx2
import pytest

from headrace.store.db.database import Database
from headrace.store.tenants.api_keys import create_key
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient
from tests.producer_api.jobs.test_version_routes import second

__all__ = ["second"]

BODY = {"model": "tiny", "version": 2, "steps": [{"percent": 1, "hold_s": 600}, {"percent": 50, "min_jobs": 5}]}


@pytest.mark.usefixtures("second")
def test_a_rollout_is_started_paused_on_a_condition_and_promoted(
    api: httpx2.Client, db: Database, tenant: str, make_client: MakeClient
) -> None:
    started = api.post("/v1/rollouts", json=BODY)
    assert (started.status_code, started.headers["etag"]) == (201, '"1"')
    rollout = started.json()
    assert (rollout["stable_version"], rollout["percent"], rollout["state"]) == (1, 1, "running")
    assert error_of(api.post("/v1/rollouts", json=BODY))["code"] == "rollout_active"
    path = f"/v1/rollouts/{rollout['id']}"
    paused = api.post(f"{path}/pause", params={"reason": "look"}, headers={"If-Match": started.headers["etag"]})
    assert (paused.json()["state"], paused.json()["reason"]) == ("paused", "look")
    stale = api.post(f"{path}/abort", headers={"If-Match": started.headers["etag"]})
    assert (stale.status_code, error_of(stale)["code"]) == (412, "rollout_changed")
    assert api.get(path).json() == paused.json()
    assert api.get(f"{path}/plot").text.startswith("<svg")
    assert api.post(f"{path}/promote").json()["state"] == "promoted"
    (version,) = (one for one in api.get("/v1/model_versions").json()["data"] if one["id"] == "tiny@2")
    assert version["aliases"] == ["default"]
    (listed,) = api.get("/v1/rollouts", params={"model": "tiny"}).json()["data"]
    others = make_client(create_key(db, tenant, "other", ["registry:admin"], models=["other"], actor="tests"))
    assert others.get("/v1/rollouts").json()["data"] == [], "of models that the key may use"
    assert others.get(path).status_code == 403
    shown = api.get(path).json()
    assert shown["warning"] is None
    by_tenant = api.post("/v1/rollouts", json=BODY | {"version": 1, "sticky_key": "tenant"}).json()
    assert "`user` or `conversation`" in by_tenant["warning"]
    api.post(f"/v1/rollouts/{by_tenant['id']}/abort")
    assert listed == {name: shown[name] for name in shown.keys() - {"checks", "judged_at", "waits_for", "job_percent"}}
    assert api.get("/v1/rollouts", params={"active": True}).json()["data"] == []


@pytest.mark.usefixtures("second")
def test_a_bad_rollout_is_refused_with_the_place(api: httpx2.Client) -> None:
    refused = {
        "no_worker": {"require_worker": True},
        "model_not_found": {"version": 3},
        "rollout_not_needed": {"version": 1},
        "alias_not_found": {"alias": "nowhere"},
        "invalid_value": {"bounds": {"errors": 2}},
        "unsupported_parameter": {"percent": 5},
    }
    for code, change in refused.items():
        assert error_of(api.post("/v1/rollouts", json=BODY | change))["code"] == code, change
    error = error_of(api.post("/v1/rollouts", json=BODY | {"steps": [{"percent": 50, "hold_s": 1}] * 2}))
    assert (error["code"], error["param"]) == ("invalid_value", "steps")
    error = error_of(api.post("/v1/rollouts", json=BODY | {"mode": "shadow"}))
    assert (error["code"], error["param"]) == ("invalid_value", "mode")
    assert "HEADRACE_SHADOW_TENANT" in error["message"]
    assert error_of(api.get("/v1/rollouts/rollout_none"))["code"] == "rollout_not_found"

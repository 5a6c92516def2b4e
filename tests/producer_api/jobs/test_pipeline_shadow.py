"""Shadow rollouts of pipelines: the copies that the candidate gets, their judge, and the versions that are refused."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from headrace.features.policy import policies
from headrace.features.retention.retention import sweep_marked
from headrace.features.rollouts.metrics import RolloutMetrics
from headrace.features.rollouts.rollout_keeper import RolloutKeeper
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.payloads.job_payload import EVERY_MODEL
from headrace.store.registry import prompt_templates
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.prompt_templates import Kind
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import create_tenant
from tests.processes import wait_for
from tests.producer_api.calling import error_of
from tests.producer_api.jobs.test_pipelines import FIRST, digest, submit
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer, serving
from tests.refusals import Naming

__all__ = ["digest"]

EMAIL_RULE = {"id": "mail", "action": "redact", "stage": "input", "kinds": ["email"]}


@pytest.fixture
def shadow_tenant(db: Database) -> str:
    return create_tenant(db, "shadow")


@pytest.fixture
def server(settings: Settings, model: ModelVersion, tenant: str, shadow_tenant: str) -> Iterator[ApiServer]:
    """A server that may copy jobs of the tenant."""
    wanted = settings.model_copy(update={"shadow_tenant": shadow_tenant, "shadow_sources": (tenant,)})
    with serving(wanted) as server:
        yield server


@pytest.fixture
def keeper(db: Database, tenant: str, shadow_tenant: str) -> RolloutKeeper:
    return RolloutKeeper(db, RolloutMetrics(CollectorRegistry()), shadow_tenant=shadow_tenant, shadow_sources=(tenant,))


def start(api: httpx2.Client, digest: str, version: int = 2) -> httpx2.Response:
    assert api.put(f"{digest}/aliases/default", json={"version": 1}).status_code == 200
    # Nine pairs decide with this bound.
    bounds = {"false_alarm": 0.2}
    body = {"version": version, "mode": "shadow", "steps": [{"percent": 100, "hold_s": 3600}], "bounds": bounds}
    return api.post(f"{digest}/rollouts", json=body)


@pytest.fixture
def rollout(api: httpx2.Client, digest: str) -> str:
    """The path of a rollout in shadow mode: copies of all jobs of version 1 go to version 2."""
    started = start(api, digest)
    assert (started.status_code, started.json().get("mode")) == (201, "shadow"), started.text
    return f"{digest}/rollouts/{started.json()['id']}"


def rows(db: Database, statement: str, **values: Any) -> list[dict[str, Any]]:
    with db.begin() as connection:
        found = connection.execute(text(statement), values)
        return [dict(row) for row in found.mappings()] if found.returns_rows else []


def run(worker: ScriptedWorker, step: str, said: str) -> None:
    attempt = worker.claim(step)
    worker.say(attempt, said)
    worker.succeed(attempt)


def run_stable(api: httpx2.Client, worker: ScriptedWorker, num_jobs: int, **changes: Any) -> list[str]:
    """Run jobs of the stable version and return their ids."""
    made = [submit(api, **changes) for _ in range(num_jobs)]
    assert {job["pipeline"]["version"] for job in made} == {1}, "the candidate gets no caller's job"
    for job in made:
        (step,) = api.get(f"/v1/jobs/{job['id']}").json()["steps"]
        run(worker, step["job_id"], "short")
    return [job["id"] for job in made]


def mirrors(db: Database, tenant_id: str, num_jobs: int) -> list[dict[str, Any]]:
    """Wait for the copies, and return them with the ids of their steps."""
    copies = """SELECT mirror.*, ARRAY(SELECT id FROM jobs AS step WHERE parent_id = mirror.id ORDER BY id) AS steps
        FROM jobs AS mirror WHERE tenant_id = :tenant AND parent_id IS NULL ORDER BY id"""
    return wait_for(lambda: len(found := rows(db, copies, tenant=tenant_id)) == num_jobs and found, "the mirrors") or []


def judged(keeper: RolloutKeeper, api: httpx2.Client, rollout: str, num_pairs: int) -> dict[str, Any]:
    """Let the dispatcher look until it has so many pairs; return the rollout."""

    def look() -> dict[str, Any] | None:
        keeper.turn()
        found: dict[str, Any] = api.get(rollout).json()
        return (
            found if {one["num_pairs"] for one in found["checks"] if one["name"] == "errors"} == {num_pairs} else None
        )

    return wait_for(look, "the pairs") or {}


def test_a_good_candidate_gets_copies_that_their_tenant_does_not_see_and_does_not_pay(
    api: httpx2.Client,
    worker: ScriptedWorker,
    keeper: RolloutKeeper,
    db: Database,
    tenant: str,
    shadow_tenant: str,
    rollout: str,
) -> None:
    originals = run_stable(api, worker, 2, user="ann", webhook={"url": "https://hooks.example.com/"})
    paid = "SELECT * FROM usage_ledger WHERE tenant_id = :tenant ORDER BY job_id"
    paid_before = rows(db, paid, tenant=tenant)
    deliveries = rows(db, "SELECT * FROM webhook_deliveries")
    copies = mirrors(db, shadow_tenant, 2)
    for copy in copies:
        assert (copy["class_rank"], copy["priority"], copy["pipeline_version"]) == (2, 9, 2)
        assert (copy["api_key_id"], copy["user_id"], copy["purge_when_ended"]) == (None, None, True)
        for step in copy["steps"]:
            run(worker, step, "short")
    steps = rows(
        db, "SELECT * FROM jobs WHERE tenant_id = :tenant AND parent_id IS NOT NULL ORDER BY id", tenant=shadow_tenant
    )
    assert {(one["class_rank"], one["api_key_id"], one["state"]) for one in steps} == {(2, None, "succeeded")}
    assert [json.loads(step["payload"])["input"]["prompt"] for step in steps[::2]] == ["a long story"] * 2, (
        "the copy has the input of its original"
    )
    checks = {one["name"]: one for one in judged(keeper, api, rollout, 2)["checks"]}
    assert checks["longer_answers"]["num_pairs"] == 2
    assert (checks["token_time"]["num_pairs"], checks["disagreement"]["num_pairs"]) == (0, 0)
    assert {job["id"] for job in api.get("/v1/jobs").json()["data"]} == {*originals}
    assert api.get(f"/v1/jobs/{copies[0]['id']}").status_code == 404
    assert rows(db, paid, tenant=tenant) == paid_before
    assert rows(db, "SELECT * FROM webhook_deliveries") == deliveries
    assert len(rows(db, paid, tenant=shadow_tenant)) == 6, "both copies, each with two steps"
    rows(db, "UPDATE jobs SET completed_at = completed_at - interval '2 minutes'")
    sweep_marked(db, 10)
    kept = "SELECT FROM jobs WHERE tenant_id = :tenant AND (output_purged_at IS NULL OR input_purged_at IS NULL)"
    assert rows(db, kept, tenant=shadow_tenant) == [], "the contents of the copies and of their steps are erased"


@pytest.mark.full
def test_a_candidate_whose_copies_fail_is_rolled_back(
    api: httpx2.Client, worker: ScriptedWorker, keeper: RolloutKeeper, db: Database, shadow_tenant: str, rollout: str
) -> None:
    run_stable(api, worker, 10)
    for copy in mirrors(db, shadow_tenant, 10):
        worker.fail(worker.claim(copy["steps"][0]), "numerical_error", "the logits are not finite")
    wait_for(lambda: keeper.turn() or api.get(rollout).json()["state"] != "running", "the end")
    shown = api.get(rollout).json()
    assert (shown["state"], shown["reason"].startswith("errors: 100 %")) == ("rolled_back", True), shown["reason"]
    assert api.get(rollout.partition("/rollouts")[0], params={"version": "default"}).json()["version"] == 1


def test_a_job_with_a_policy_keeps_no_input_for_a_copy(
    api: httpx2.Client, db: Database, tenant: str, rollout: str
) -> None:
    def payload(job_id: str) -> str:
        return str(jobs.get(db, tenant, job_id).payload)

    def is_policed() -> str | None:
        made: str = submit(api, input={"text": "write to ann@example.com"})["id"]
        return made if "<EMAIL_1>" in payload(jobs.list_steps(db, tenant, made)[0].id) else None

    plain = submit(api)["id"]
    assert "a long story" in payload(plain)
    policies.put(db, tenant, EVERY_MODEL, {"version": 1, "rules": [EMAIL_RULE]}, "tests")
    assert "ann@example.com" not in payload(wait_for(is_policed, "the policy is in force") or plain)


@pytest.mark.parametrize(
    ("step", "named"),
    [
        ({"retrieval": {"vector_store_ids": ["vs_1"]}}, "`retrieval`"),
        ({"server_tools": {"tools": ["weather"]}}, "`server_tools`"),
        ({"task": "embed", "input": {"texts": ["x"]}}, "the task embed"),
    ],
)
def test_steps_that_act_outside_are_refused(
    api: httpx2.Client, db: Database, tenant: str, digest: str, step: dict[str, Any], named: str
) -> None:
    template = {"steps": [{**FIRST, **step}]}
    name = digest.rpartition("/")[2]
    third = prompt_templates.add_version(db, tenant, name, template=template, actor="tests", kind=Kind.PIPELINE)
    refused = start(api, digest, third.version)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "mode")
    assert error_of(refused)["message"] == Naming("step first", named)
    assert api.get(f"{digest}/rollouts").json()["data"] == []


@pytest.mark.parametrize("sources", [(), ("ten_other",)], ids=["off", "another tenant"])
def test_a_tenant_that_the_operator_has_not_named_gets_no_shadow(
    settings: Settings, model: ModelVersion, key: str, shadow_tenant: str, sources: tuple[str, ...]
) -> None:
    wanted = settings.model_copy(update={"shadow_tenant": shadow_tenant, "shadow_sources": sources})
    headers = {"Authorization": f"Bearer {key}"}
    with serving(wanted) as server, httpx2.Client(base_url=server.url, headers=headers, timeout=60) as api:
        for path, body in (("", {"name": "digest", "steps": [FIRST]}), ("/digest/versions", {"steps": [FIRST]})):
            assert api.post(f"/v1/pipelines{path}", json=body).status_code == 201
        refused = start(api, "/v1/pipelines/digest")
    assert (refused.status_code, error_of(refused)["param"]) == (400, "mode")
    assert "HEADRACE_SHADOW_SOURCES" in error_of(refused)["message"]

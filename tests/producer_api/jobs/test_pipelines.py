"""Pipelines over HTTP: versions, aliases and canaries, what is refused, and the jobs that name one."""

from typing import Any

import httpx2
import pytest

from headrace.features.policy import policies
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.payloads.job_payload import EVERY_MODEL
from tests.cases import some_of
from tests.processes import wait_for
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.refusals import Naming

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
FIRST = {"name": "first", "model": "tiny", "input": {"prompt": {"$from": "input.text"}}, "sampling": {"max_tokens": 8}}
SECOND = {
    "name": "second",
    "model": "tiny",
    "needs": ["first"],
    "input": {"prompt": {"$from": "first.output.text"}},
    "sampling": {"max_tokens": 4},
}
ONE: dict[str, Any] = {"input_schema": SCHEMA, "steps": [FIRST]}
TWO: dict[str, Any] = {"input_schema": SCHEMA, "steps": [FIRST, SECOND]}


@pytest.fixture
def digest(api: httpx2.Client) -> str:
    """The path of a pipeline: version 1 has one step, version 2 has two."""
    made = api.post("/v1/pipelines", json={"name": "digest", **ONE})
    assert made.status_code == 201, made.text
    assert api.post("/v1/pipelines/digest/versions", json=TWO).json()["version"] == 2
    return "/v1/pipelines/digest"


def submit(api: httpx2.Client, pipeline: str = "digest", **changes: Any) -> dict[str, Any]:
    sent = api.post("/v1/jobs", json={"pipeline": pipeline, "input": {"text": "a long story"}, **changes})
    assert sent.status_code == 202, sent.text
    job: dict[str, Any] = sent.json()
    return job


def test_a_job_of_a_pipeline_runs_the_steps_of_its_version(
    api: httpx2.Client, worker: ScriptedWorker, digest: str
) -> None:
    made = submit(api, metadata={"order": "1"})
    job = api.get(f"/v1/jobs/{made['id']}").json()
    for step, said in zip(job["steps"], ("short", "shorter"), strict=True):
        attempt = worker.claim(step["job_id"])
        worker.say(attempt, said)
        worker.succeed(attempt)
    job = api.get(f"/v1/jobs/{made['id']}").json()
    assert (job["status"], job["output"]["text"], job["metadata"]) == ("succeeded", "shorter", {"order": "1"})
    shown = api.get(digest).json()
    assert job["pipeline"] == {name: shown[name] for name in ("id", "name", "version", "digest")}
    assert (shown["version"], shown["input_schema"], shown["steps"]) == (2, SCHEMA, TWO["steps"])


def test_versions_are_named_by_number_and_alias(api: httpx2.Client, digest: str) -> None:
    def version(name: str) -> int:
        return int(submit(api, name)["pipeline"]["version"])

    assert [version(name) for name in ("digest", "digest@1", "digest@latest")] == [2, 1, 2]
    assert api.put(f"{digest}/aliases/default", json={"version": 1}).json()["aliases"] == ["default"]
    unknown = error_of(api.put("/v1/pipelines/digest/aliases/default", json={"version": 9}))
    assert unknown["message"] == Naming("digest", "9"), "the name that was sent, not the id"
    assert "pipe_" not in unknown["message"]
    assert [version(name) for name in ("digest", "digest@default", "digest@latest")] == [1, 1, 2]
    assert [one["version"] for one in api.get(f"{digest}/versions").json()["data"]] == [1, 2]
    assert [one["name"] for one in api.get("/v1/pipelines").json()["data"]] == ["digest"]
    assert api.delete(digest).status_code == 200
    gone = api.post("/v1/jobs", json={"pipeline": "digest", "input": {"text": "x"}})
    assert (gone.status_code, error_of(gone)["param"]) == (404, "pipeline")


def test_a_canary_gets_its_part_of_the_users_and_keeps_them(api: httpx2.Client, digest: str) -> None:
    def versions(percent: int) -> list[int]:
        wanted = {"version": 1, "canary": {"version": 2, "percent": percent}}
        assert api.put(f"{digest}/aliases/default", json=wanted).status_code == 200
        return [submit(api, user=f"user {number}")["pipeline"]["version"] for number in range(60)]

    few, many = versions(20), versions(60)
    assert versions(20) == few, "a user stays on one side"
    assert {1, 2} == {*few} == {*many}
    assert all(after >= before for before, after in zip(few, many, strict=True)), "a growing part only adds users"
    assert api.get(digest).json()["canaries"] == [{"alias": "default", "version": 2, "percent": 20}]
    assert submit(api, "digest@1", user="user 1")["pipeline"]["version"] == 1
    assert api.put(f"{digest}/aliases/default", json={"version": 2}).json()["canaries"] == []
    assert {submit(api, user=f"user {number}")["pipeline"]["version"] for number in range(8)} == {2}


def test_a_repeated_key_is_the_first_job_after_a_new_version(api: httpx2.Client, digest: str) -> None:
    body = {"pipeline": "digest", "input": {"text": "x"}}
    first = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert api.post(f"{digest}/versions", json=ONE).status_code == 201
    again = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert (again.json()["id"], again.json()["pipeline"]["version"]) == (first.json()["id"], 2)
    other = api.post("/v1/jobs", json=body | {"input": {"text": "y"}}, headers={"Idempotency-Key": "k"})
    assert error_of(other)["code"] == "idempotency_key_reused"


@some_of(
    3,
    ("changes", "param"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [SECOND]}, "steps[0].needs[0]"),
        ({"steps": [{**FIRST, "model": "nothing"}]}, "steps[0].model"),
        ({"steps": [{**FIRST, "sampling": {"max_tokens": "many"}}]}, "steps[0].sampling.max_tokens"),
        ({"steps": [{**FIRST, "input": {"prompt": {"$from": "input.texts"}}}]}, "steps[0].input"),
        ({"steps": [{"name": "a", "task": "embed", "model": "tiny", "input": {"texts": ["x"]}}]}, "steps[0].model"),
        ({"input_schema": {"type": "nothing"}}, "input_schema"),
        ({"input_schema": {"type": ["array", "null"]}}, "input_schema"),
        ({"name": "pipe_1"}, "name"),
    ],
)
def test_a_pipeline_with_a_mistake_is_refused(api: httpx2.Client, changes: dict[str, Any], param: str) -> None:
    refused = api.post("/v1/pipelines", json={"name": "wrong", **ONE, **changes})
    assert refused.status_code in (400, 404, 422), refused.text
    assert error_of(refused)["param"] == param
    assert api.get("/v1/pipelines").json()["data"] == []


@some_of(
    2,
    ("changes", "status", "param"),
    [
        ({"input": {"text": 7}}, 400, "input.text"),
        ({"input": {}}, 400, "input"),
        ({"input": {"text": "x" * 600}}, 400, "pipeline"),
        ({"pipeline": "digest@9"}, 404, "pipeline"),
        ({"steps": [FIRST]}, 400, "steps"),
    ],
)
def test_a_job_with_a_mistake_is_refused_and_nothing_is_stored(
    api: httpx2.Client, digest: str, changes: dict[str, Any], status: int, param: str
) -> None:
    refused = api.post("/v1/jobs", json={"pipeline": "digest", "input": {"text": "x"}, **changes})
    assert (refused.status_code, error_of(refused)["param"]) == (status, param), refused.text
    assert api.get("/v1/jobs").json()["data"] == []


def test_another_tenant_has_no_such_pipeline(
    api: httpx2.Client, make_client: MakeClient, other_key: str, digest: str
) -> None:
    other = make_client(other_key)
    assert other.get(digest).status_code == 404
    assert other.post("/v1/jobs", json={"pipeline": "digest", "input": {"text": "x"}}).status_code == 404
    assert other.put(f"{digest}/aliases/default", json={"version": 1}).status_code == 404
    assert other.post("/v1/pipelines", json={"name": "digest", **ONE}).status_code == 201


def test_the_policy_sees_what_a_job_brings_and_what_a_pipeline_has(
    api: httpx2.Client, db: Database, tenant: str, digest: str
) -> None:
    rule = {"id": "mail", "action": "redact", "stage": "input", "kinds": ["email"]}
    policies.put(db, tenant, EVERY_MODEL, {"version": 1, "rules": [rule]}, "tests")

    def is_seen() -> bool:
        made = submit(api, input={"text": "write to ann@example.com"})
        first, _ = jobs.list_steps(db, tenant, made["id"])
        return bool(first.payload["input"]["prompt"] == "write to <EMAIL_1>")

    wait_for(is_seen, "the policy is in force")
    told = {**ONE, "steps": [{**FIRST, "input": {"prompt": "write to ann@example.com"}}]}
    refused = api.post(f"{digest}/versions", json=told)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "policy_blocked_input")

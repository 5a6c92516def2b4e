"""Pipelines over HTTP: whole objects, pages, versions and aliases."""

from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from headrace.features.flows.pipeline_jobs import reader_of
from headrace.store import audit_log as audit
from headrace.store.db.database import Database
from headrace.store.tenants import api_keys
from tests.cases import of
from tests.producer_api.calling import error_of, num_jobs
from tests.producer_api.conftest import MakeClient
from tests.producer_api.jobs.test_pipelines import FIRST, ONE, TWO, digest

__all__ = ["digest"]


def page(api: httpx2.Client, path: str, **asked: Any) -> tuple[list[str], bool]:
    told = api.get(path, params=asked).raise_for_status().json()
    ids = [one["id"] for one in told["data"]]
    assert (told["object"], told["first_id"], told["last_id"]) == (
        "list",
        *((ids[0], ids[-1]) if ids else (None, None)),
    )
    return ids, told["has_more"]


def test_pipelines_and_prompts_are_listed_page_by_page(api: httpx2.Client) -> None:
    for path, body in (("/v1/pipelines", ONE), *of("templates", ("/v1/prompts", {"instructions": "Be brief."}))):
        assert page(api, path) == ([], False)
        made = [api.post(path, json={"name": f"{path[4:8]}{number}", **body}).json()["id"] for number in range(3)][::-1]
        assert page(api, path) == (made, False)
        assert page(api, path, limit=3) == (made, False)
        assert page(api, path, limit=2) == (made[:2], True)
        assert page(api, path, limit=2, after=made[1]) == (made[2:], False)
        for limit in (0, 101):
            assert api.get(path, params={"limit": limit}).status_code == 400
        assert api.delete(f"{path}/{path[4:8]}1").json()["deleted"] is True
        assert page(api, path) == ([made[0], made[2]], False)


def test_a_pipeline_is_shown_whole(api: httpx2.Client, digest: str, db: Database, tenant: str) -> None:
    two = api.get(digest).json()
    assert {name: two[name] for name in two if name not in ("id", "digest", "created_at")} == {
        "object": "pipeline",
        "name": "digest",
        "version": 2,
        "aliases": [],
        "canaries": [],
        "description": "",
        **TWO,
    }
    canary = {"version": 2, "percent": 99}
    put = api.put(f"{digest}/aliases/stable", json={"version": 1, "canary": canary}).json()
    assert (put["version"], put["aliases"], put["canaries"]) == (1, ["stable"], [{"alias": "stable", **canary}])
    assert api.get(digest, params={"version": "stable"}).json() == put
    assert api.get(digest, params={"version": "1"}).json()["steps"] == ONE["steps"]
    assert api.get(digest).json()["canaries"] == put["canaries"]
    ids, has_more = page(api, f"{digest}/versions")
    assert (ids, has_more) == ([two["id"]] * 2, False)
    assert api.delete(f"{digest}/aliases/stable").status_code == 204
    assert (api.get(digest).json()["canaries"], api.get(digest, params={"version": "stable"}).status_code) == ([], 404)
    for wrong in ({"version": 0}, {"version": "1"}, {"version": 1, "canary": {"version": 2, "percent": 0}}):
        assert api.put(f"{digest}/aliases/stable", json=wrong).status_code == 400
    assert api.put(f"{digest}/aliases/x", json={"version": 1, "canary": {**canary, "percent": 100}}).status_code == 400
    assert api.put(f"{digest}/aliases/a b", json={"version": 1}).status_code == 400
    assert api.delete(digest).json() == {"id": two["id"], "object": "pipeline", "deleted": True}
    with db.begin() as connection:
        keys = set(connection.execute(text("SELECT id FROM api_keys")).scalars())
    deeds = [one for one in audit.list_entries(db, tenant) if one.action.startswith("pipeline.")]
    assert len(deeds) == 5
    assert {one.actor for one in deeds} <= keys


def test_a_job_at_the_url_of_its_pipeline(
    api: httpx2.Client, digest: str, make_client: MakeClient, db: Database
) -> None:
    body = {"input": {"text": "x"}, "metadata": {"a": "b"}, "user": "ann", "priority": 2}
    made = api.post(f"{digest}@1/jobs", json=body, headers={"Prefer": "wait=0"})
    assert (made.status_code, made.json()["pipeline"]["version"]) == (202, 1)
    job = made.json()
    assert (job["metadata"], job["priority"]) == ({"a": "b"}, 2)
    assert api.post("/v1/pipelines/none/jobs", json=body).status_code == 404
    read = api_keys.create_key(db, str(job_owner(db)), "r", ["jobs:read"], actor="t")
    assert make_client(read).post(f"{digest}/jobs", json=body).status_code == 403
    assert make_client(read).get(digest).status_code == 200
    assert num_jobs(db) == 2, "the job and its step"


def job_owner(db: Database) -> str:
    with db.begin() as connection:
        return str(connection.execute(text("SELECT DISTINCT tenant_id FROM jobs")).scalar_one())


@pytest.mark.parametrize(
    ("url", "pipeline"),
    [
        ("/v1/pipelines/a.b-c_d/jobs", "a.b-c_d"),
        ("/v1/pipelines/digest@2/jobs", "digest@2"),
        (f"/v1/pipelines/{'x' * 128}@{'y' * 64}/jobs", f"{'x' * 128}@{'y' * 64}"),
        (f"/v1/pipelines/{'x' * 129}/jobs", None),
        ("/v1/pipelines/-a/jobs", None),
        ("/v1/pipelines/a@/jobs", None),
        ("/v1/pipelines/a/jobs/", None),
        ("/v1/pipelines//jobs", None),
    ],
)
def test_the_url_of_a_pipeline_names_it(url: str, pipeline: str | None) -> None:
    read: Any = reader_of(url)
    assert (None if read is None else read({"input": {"a": 1}, "priority": 3}).job.pipeline) == pipeline
    if read is not None:
        job = read({"input": {"a": 1}, "priority": 3}).job
        assert (job.task, job.input, job.priority) == ("flow", {"a": 1}, 3)


def test_a_pipeline_takes_no_name_of_an_id(api: httpx2.Client) -> None:
    for name in ("pipe_1", "pmpt_1", "a b", ""):
        refused = api.post("/v1/pipelines", json={"name": name, "steps": [FIRST]})
        assert (refused.status_code, error_of(refused)["param"]) == (400, "name")

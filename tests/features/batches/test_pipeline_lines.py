"""Lines of batches that name a pipeline: their versions, limits and results, what is refused, and a cancel."""

from typing import Any

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.tenants import quotas
from headrace.store.tenants.tenant_limits import Limits, SetBy, set_limits
from tests.features.batches.test_batch_routes import make, read, wait
from tests.features.batches.test_batch_routes import wait_for as wait_for_status
from tests.processes import wait_for
from tests.producer_api.calling import error_of
from tests.producer_api.jobs.test_pipelines import ONE, digest
from tests.producer_api.scripted_worker import ScriptedWorker

__all__ = ["digest"]

URL = "/v1/pipelines/digest/jobs"


@pytest.fixture
def two_at_a_time(db: Database, tenant: str) -> None:
    """The limit of the tenant, before a process reads it for the first time."""
    set_limits(db, tenant, None, Limits(concurrent_jobs=2), set_by=SetBy.OPERATOR, actor="tests")


def line(custom_id: str, words: object = "a long story") -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": {"input": {"text": words}}}


def steps(db: Database) -> list[tuple[str, str]]:
    """Return the id and the state of each step, the oldest first."""
    with db.begin() as connection:
        found = connection.execute(text("SELECT id, state FROM jobs WHERE parent_id IS NOT NULL ORDER BY id"))
        return [tuple(row) for row in found]


def test_lines_keep_the_version_of_the_start_and_wait_for_the_limits(
    two_at_a_time: None,
    api: httpx2.Client,
    openai: OpenAI,
    worker: ScriptedWorker,
    db: Database,
    tenant: str,
    digest: str,
) -> None:
    batch = make(openai, [line(f"r{n}", f"story {n}") for n in range(4)], endpoint=URL)
    begun = wait(openai, batch, lambda _: quotas.usage_of(db, tenant).jobs == 2)
    pipeline = api.get(digest).json()
    assert begun.to_dict()["model_versions"] == {URL: f"{pipeline['id']}@2", "tiny": "tiny@1"}
    assert api.post(f"{digest}/versions", json=ONE).json()["version"] == 3
    with worker.serve(lambda payload: [payload["input"]["prompt"][-7:]]):
        done = wait_for_status(openai, batch, "completed")
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 4, "completed": 4, "failed": 0}
    results = read(openai, done.output_file_id)
    assert [each["custom_id"] for each in results] == ["r0", "r1", "r2", "r3"]
    job = results[3]["response"]["body"]
    assert (job["object"], job["status"], job["pipeline"]["version"], job["service_class"]) == (
        "job",
        "succeeded",
        2,
        "batch",
    )
    (last,) = [each for each in api.get(f"/v1/jobs/{job['id']}").json()["steps"] if each["name"] == "second"]
    assert job["output"] == last["output"]
    assert done.to_dict()["usage"]["output_tokens"] == 8, "both steps of each line are counted"
    assert len(steps(db)) == 8


def test_a_cancel_of_the_batch_reaches_the_steps(
    openai: OpenAI, worker: ScriptedWorker, db: Database, digest: str
) -> None:
    batch = make(openai, [line("runs"), line("waits")], endpoint=URL)
    wait(openai, batch, lambda _: len(steps(db)) == 4)
    attempt = worker.claim(steps(db)[0][0])
    openai.batches.cancel(batch.id)
    wait_for(lambda: [state for _, state in steps(db)] == ["running", "cancelled", "cancelled", "cancelled"], "stopped")
    worker.obey_cancel(attempt)
    ended = wait_for_status(openai, batch, "cancelled")
    assert ended.request_counts is not None
    assert ended.request_counts.model_dump() == {"total": 2, "completed": 0, "failed": 2}
    assert [each["error"]["code"] for each in read(openai, ended.error_file_id)] == ["batch_cancelled"] * 2


def test_wrong_lines_are_named_before_anything_runs(openai: OpenAI, db: Database, digest: str) -> None:
    named = line("named") | {"body": {"pipeline": "digest", "input": {"text": "x"}}}
    elsewhere = line("elsewhere") | {"url": "/v1/pipelines/other/jobs"}
    batch = make(openai, [line("right"), line("number", 7), named, elsewhere], endpoint=URL)
    failed = wait_for_status(openai, batch, "failed")
    assert failed.errors is not None
    assert [(each.line, each.param) for each in failed.errors.data or ()] == [
        (2, "body.input.text"),
        (3, "body.pipeline"),
        (4, "url"),
    ]
    unknown = make(openai, [elsewhere], endpoint=elsewhere["url"])
    failed = wait_for_status(openai, unknown, "failed")
    assert failed.errors is not None
    assert [(each.code, each.param) for each in failed.errors.data or ()] == [("not_found", "url")]
    assert steps(db) == []


def test_the_url_takes_a_job_too(api: httpx2.Client, digest: str) -> None:
    sent = api.post(URL, json={"input": {"text": "x"}, "metadata": {"order": "1"}})
    assert sent.status_code == 202, sent.text
    assert (sent.json()["pipeline"]["version"], sent.json()["metadata"]) == (2, {"order": "1"})
    assert api.post("/v1/pipelines/digest@1/jobs", json={"input": {"text": "x"}}).json()["pipeline"]["version"] == 1
    refused = api.post(URL, json={"input": {"text": 7}})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "input.text")


@pytest.mark.parametrize("endpoint", ["/v1/pipelines//jobs", "/v1/pipelines/digest", "/v1/pipelines/a/b/jobs"])
def test_an_endpoint_that_is_no_pipelines_is_refused(openai: OpenAI, endpoint: str) -> None:
    with pytest.raises(Exception, match="/v1/pipelines/NAME/jobs"):
        make(openai, [line("a")], endpoint=endpoint)

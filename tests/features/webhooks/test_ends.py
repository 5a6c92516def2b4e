"""Which ends of jobs are told, to whom, and once."""

from typing import Any

import pytest

from headrace.features.responses.new_response import NewResponse
from headrace.features.webhooks.endpoints import create_endpoint
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Release, finish, release
from headrace.store.payloads.job_payload import WebhookSpec
from headrace.store.schema.job_states import JobState
from tests.store.jobs.test_attempts import start
from tests.store.jobs.test_attempts import success as end_of
from tests.store.jobs.test_claims import success, take
from tests.store.making import AcceptOne, Query


class TestWebhookOutbox:
    def test_an_end_is_told_to_the_jobs_url_and_to_those_who_asked(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        url = "https://example.com/{}".format
        create_endpoint(db, tenant, url=url("all"), events=["*"], actor="test")
        create_endpoint(db, tenant, url=url("good"), events=["job.succeeded"], actor="test")
        create_endpoint(db, tenant, url=url("bad"), events=["job.failed", "job.expired"], actor="test")
        create_endpoint(db, tenant, url=url("gone"), events=["*"], actor="test")
        create_endpoint(db, other_tenant, url=url("foreign"), events=["*"], actor="test")
        query("UPDATE webhook_endpoints SET disabled_at = now() WHERE url = :url", url=url("gone"))
        job_id = accept_one(webhook=WebhookSpec(url=url("own")).model_dump())
        finish(db, [success(take(db, job_id)[job_id])])
        rows = query("SELECT url, type, tenant_id, endpoint_id IS NULL AS own FROM webhook_deliveries ORDER BY url")
        assert [row["url"] for row in rows] == [url("all"), url("good"), url("own")]
        assert {(row["type"], row["tenant_id"]) for row in rows} == {("job.succeeded", tenant)}
        assert [row["own"] for row in rows] == [False, False, True]

    def test_a_url_that_is_both_is_told_once_as_the_endpoint(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        endpoint = create_endpoint(db, tenant, url="https://example.com/x", actor="test")
        job_id = accept_one(webhook={"url": endpoint.url})
        finish(db, [success(take(db, job_id)[job_id])])
        assert query("SELECT endpoint_id FROM webhook_deliveries") == [{"endpoint_id": endpoint.id}]

    def test_a_refused_result_is_told_to_nobody(self, db: Database, accept_one: AcceptOne, query: Query) -> None:
        job_id = accept_one(webhook={"url": "https://example.com/x"})
        old = take(db, job_id)[job_id]
        release(db, [Release(job_id, old.epoch)])
        finish(db, [success(old)])
        assert query("SELECT id FROM webhook_deliveries") == []


@pytest.mark.parametrize(
    ("state", "output", "event"),
    [
        (JobState.SUCCEEDED, {"finish_reason": "stop"}, "response.completed"),
        (JobState.SUCCEEDED, {"finish_reason": "length"}, "response.incomplete"),
        (JobState.CANCELLED, None, "response.cancelled"),
        (JobState.FAILED, None, "response.failed"),
        (JobState.EXPIRED, None, "response.failed"),
    ],
)
def test_an_end_is_told_as_a_response_to_its_own_url_and_as_both_to_endpoints(
    db: Database,
    tenant: str,
    accept_one: AcceptOne,
    query: Query,
    state: JobState,
    output: dict[str, Any] | None,
    event: str,
) -> None:
    create_endpoint(db, tenant, url="https://example.com/all", events=["*"], actor="tests")
    new = NewResponse(None, True, False, [], {})
    quiet = accept_one(response=new, webhook={"url": None, "events": []})
    own = accept_one(response=new, webhook={"url": "https://example.com/own"})
    listed = accept_one(response=new, webhook={"url": "https://example.com/own", "events": [f"job.{state}"]})
    plain = accept_one(webhook={"url": "https://example.com/own", "events": None})
    held = start(db, quiet, own, listed, plain)
    finish(db, [end_of(one, state=state, output=output) for one in held.values()])
    sent = query("SELECT job_id, right(url, 3) AS url, type FROM webhook_deliveries")
    job_event = f"job.{state}"
    assert {tuple(row.values()) for row in sent} == {
        *((job_id, "all", kind) for job_id in (own, listed) for kind in (event, job_event)),
        (plain, "all", job_event),
        (own, "own", event),
        (listed, "own", job_event),
        (plain, "own", job_event),
    }
    assert len(sent) == 8

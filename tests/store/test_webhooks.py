import base64
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import standardwebhooks

from store.audit import list_entries
from store.db import Database
from store.errors import Conflict, InvalidRequest, NotFound
from store.jobs import request_cancel
from store.keys import get_webhook_secret
from store.states import JobState
from store.webhooks import (
    create_endpoint,
    delete_endpoint,
    delivered,
    failed,
    list_deliveries,
    list_endpoints,
    new_secret,
    postpone,
    take_due,
)
from tests.store.making import AcceptOne, Query

URL = "https://example.com/hook"


@pytest.fixture
def outbox(db: Database, tenant: str, accept_one: AcceptOne) -> list[str]:
    """Three deliveries of the jobs' own URL; the jobs' ids in the order in which they ended."""
    ids = [accept_one(webhook={"url": URL}) for _ in range(3)]
    for job_id in ids:
        request_cancel(db, tenant, job_id)
    return ids


class TestEndpoints:
    def test_an_endpoint_is_listed_with_its_secret(self, db: Database, tenant: str) -> None:
        made = create_endpoint(db, tenant, url=URL, events=["job.failed", "job.expired", "job.failed"], actor="mia")
        assert (made.url, made.events, made.disabled_at) == (URL, ("job.expired", "job.failed"), None)
        everything = create_endpoint(db, tenant, url=f"{URL}/2", actor="mia")
        assert everything.events == ("*",)
        assert everything.secret != made.secret
        assert list_endpoints(db, tenant) == [made, everything]
        assert list_entries(db, tenant)[0].action == "webhook_endpoint.created"
        assert made.secret not in str(list_entries(db, tenant))

    def test_what_cannot_be_is_refused(self, db: Database, tenant: str, other_tenant: str) -> None:
        for events in (["job.queued"], [], ["job.*"]):
            with pytest.raises(InvalidRequest) as refused:
                create_endpoint(db, tenant, url=URL, events=events, actor="mia")
            assert refused.value.param == "events"
        create_endpoint(db, tenant, url=URL, actor="mia")
        with pytest.raises(Conflict):
            create_endpoint(db, tenant, url=URL, actor="mia")
        create_endpoint(db, other_tenant, url=URL, actor="mia")

    def test_only_its_tenant_sees_and_deletes_it(self, db: Database, tenant: str, other_tenant: str) -> None:
        made = create_endpoint(db, tenant, url=URL, actor="mia")
        assert list_endpoints(db, other_tenant) == []
        with pytest.raises(NotFound):
            delete_endpoint(db, other_tenant, made.id, actor="eve")
        delete_endpoint(db, tenant, made.id, actor="mia")
        assert list_endpoints(db, tenant) == []
        with pytest.raises(NotFound):
            delete_endpoint(db, tenant, made.id, actor="mia")

    def test_a_secret_is_one_that_the_standards_library_takes(self) -> None:
        secret = new_secret()
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 48
        standardwebhooks.Webhook(secret)
        assert new_secret() != secret


class TestTaking:
    def test_a_delivery_carries_what_the_sender_needs(self, db: Database, tenant: str, outbox: list[str]) -> None:
        first = take_due(db, 10, 60)[0]
        assert first.id.startswith("evt_")
        assert (first.tenant_id, first.url, first.type) == (tenant, URL, "job.cancelled")
        assert (first.subject_id, first.status, first.attempt) == (outbox[0], JobState.CANCELLED, 1)
        assert first.secret == get_webhook_secret(db, tenant)

    def test_an_endpoints_delivery_has_its_secret(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        endpoint = create_endpoint(db, tenant, url=URL, actor="mia")
        request_cancel(db, tenant, accept_one())
        assert [delivery.secret for delivery in take_due(db, 10, 60)] == [endpoint.secret]

    def test_the_longest_due_come_first_and_once(self, db: Database, outbox: list[str]) -> None:
        assert [delivery.subject_id for delivery in take_due(db, 2, 60)] == outbox[:2]
        assert [delivery.subject_id for delivery in take_due(db, 2, 60)] == outbox[2:]
        assert take_due(db, 2, 60) == []

    def test_a_dead_senders_delivery_comes_back_under_the_same_id(self, db: Database, outbox: list[str]) -> None:
        first = {delivery.id: delivery.attempt for delivery in take_due(db, 10, 0)}
        again = {delivery.id: delivery.attempt for delivery in take_due(db, 10, 60)}
        assert first == dict.fromkeys(again, 1)
        assert set(again.values()) == {2}

    def test_two_senders_share_the_outbox(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        for _ in range(20):
            request_cancel(db, tenant, accept_one(webhook={"url": URL}))
        barrier = Barrier(4)

        def race(_: int) -> list[str]:
            barrier.wait(10)
            return [delivery.id for _ in range(8) for delivery in take_due(db, 3, 60)]

        with ThreadPoolExecutor(4) as pool:
            taken = [delivery for ids in pool.map(race, range(4), timeout=30) for delivery in ids]
        assert len(taken) == len(set(taken)) == 20


class TestSettling:
    def test_a_delivered_one_is_done(self, db: Database, tenant: str, outbox: list[str]) -> None:
        delivery = take_due(db, 1, 0)[0]
        delivered(db, delivery.id, 204)
        assert delivery.id not in {other.id for other in take_due(db, 10, 0)}
        (row,) = list_deliveries(db, tenant, delivery.subject_id)
        assert (row.state, row.attempts, row.last_status, row.last_error) == ("delivered", 1, 204, None)
        assert row.delivered_at is not None

    def test_a_failed_try_comes_again_at_its_time(self, db: Database, outbox: list[str], query: Query) -> None:
        delivery = take_due(db, 1, 0)[0]
        failed(db, delivery.id, status=500, error="HTTP 500", retry_in_s=300)
        assert delivery.id not in {other.id for other in take_due(db, 10, 60)}
        (row,) = query(
            "SELECT state, last_status, last_error, extract(epoch FROM next_attempt_at - now()) AS wait_s"
            " FROM webhook_deliveries WHERE id = :id",
            id=delivery.id,
        )
        assert (row["state"], row["last_status"], row["last_error"]) == ("pending", 500, "HTTP 500")
        assert 290 < row["wait_s"] <= 300
        query("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE id = :id", id=delivery.id)
        assert [(again.id, again.attempt) for again in take_due(db, 10, 60)] == [(delivery.id, 2)]

    def test_the_last_failed_try_gives_up(self, db: Database, tenant: str, outbox: list[str]) -> None:
        delivery = take_due(db, 1, 0)[0]
        failed(db, delivery.id, status=None, error="connection refused", retry_in_s=None)
        (row,) = list_deliveries(db, tenant, delivery.subject_id)
        assert (row.state, row.last_status, row.last_error) == ("failed", None, "connection refused")
        assert delivery.id not in {other.id for other in take_due(db, 10, 0)}

    def test_what_is_settled_stays_settled(self, db: Database, tenant: str, outbox: list[str]) -> None:
        delivery = take_due(db, 1, 0)[0]
        delivered(db, delivery.id, 200)
        failed(db, delivery.id, status=500, error="a slower sender of the same delivery", retry_in_s=0)
        assert [row.state for row in list_deliveries(db, tenant, delivery.subject_id)] == ["delivered"]

    def test_an_endpoint_that_is_gone_is_disabled(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne
    ) -> None:
        create_endpoint(db, tenant, url=URL, actor="mia")
        create_endpoint(db, tenant, url=f"{URL}/2", actor="mia")
        request_cancel(db, tenant, accept_one())
        gone = next(delivery for delivery in take_due(db, 10, 60) if delivery.url == URL)
        failed(db, gone.id, status=410, error="HTTP 410", retry_in_s=None)
        assert {endpoint.url: endpoint.disabled_at is None for endpoint in list_endpoints(db, tenant)} == {
            URL: False,
            f"{URL}/2": True,
        }
        job_id = accept_one()
        request_cancel(db, tenant, job_id)
        assert [row.url for row in list_deliveries(db, tenant, job_id)] == [f"{URL}/2"]

    def test_one_taken_and_not_tried_is_not_counted(self, db: Database, outbox: list[str]) -> None:
        taken = [delivery.id for delivery in take_due(db, 2, 60)]
        postpone(db, taken, 0)
        postpone(db, [], 0)
        assert {(again.id, again.attempt) for again in take_due(db, 10, 60)} >= {(delivery, 1) for delivery in taken}


def test_deliveries_are_their_tenants_newest_first(
    db: Database, tenant: str, other_tenant: str, outbox: list[str]
) -> None:
    assert [row.job_id for row in list_deliveries(db, tenant)] == outbox[::-1]
    assert [row.job_id for row in list_deliveries(db, tenant, limit=1)] == [outbox[2]]
    assert list_deliveries(db, other_tenant) == []
    assert list_deliveries(db, other_tenant, outbox[0]) == []

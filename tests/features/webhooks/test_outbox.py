"""The outbox: deliveries that are taken and settled, and endpoints that are disabled because of them."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from threading import Barrier

import pytest
from sqlalchemy import text

from headrace.features.files.result_links import check_link
from headrace.features.responses.new_response import NewResponse
from headrace.features.webhooks import outbox as webhooks
from headrace.features.webhooks.delivery_log import DeliveryFilter, DeliveryRecord, get_delivery, list_deliveries
from headrace.features.webhooks.endpoints import (
    create_endpoint,
    enable_endpoint,
    get_endpoint,
    list_endpoints,
    lock_endpoint,
)
from headrace.features.webhooks.outbox import (
    ATTEMPTS_KEPT,
    DUE,
    AttemptResult,
    Delivery,
    postpone,
    record_delivered,
    record_failed,
    record_refused,
    take_due,
)
from headrace.features.webhooks.secrets import get_webhook_secret
from headrace.features.webhooks.sender import body_of
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.errors import NotFound
from headrace.store.jobs.jobs import request_cancel
from headrace.store.scheduling.work_probe import WorkProbe
from headrace.store.schema.job_states import JobState
from headrace.store.tenants.api_keys import create_tenant
from tests.refusals import Naming
from tests.store.making import AcceptOne, Query

URL = "https://example.com/hook"
DAY_S = 86_400.0
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def tried(status: int | None = 200, error: str | None = None) -> AttemptResult:
    return AttemptResult(NOW, 12, status, error)


def fail(db: Database, delivery: Delivery, status: int | None = 500, retry_in_s: float | None = 300) -> str | None:
    return record_failed(db, delivery, tried(status, f"answered {status}"), retry_in_s=retry_in_s, patience_s=5 * DAY_S)


def of_job(db: Database, tenant: str, job_id: str) -> list[DeliveryRecord]:
    return list_deliveries(db, tenant, DeliveryFilter(job_id=job_id))


@pytest.fixture
def outbox(db: Database, tenant: str, accept_one: AcceptOne) -> list[str]:
    """Three deliveries of the jobs' own URL; the jobs' ids in the order in which they ended."""
    ids = [accept_one(webhook={"url": URL}) for _ in range(3)]
    for job_id in ids:
        request_cancel(db, tenant, job_id)
    return ids


class TestTaking:
    def test_a_delivery_carries_what_the_sender_needs(self, db: Database, tenant: str, outbox: list[str]) -> None:
        first = take_due(db, 10, 60)[0]
        assert first.id.startswith("evt_")
        assert (first.tenant_id, first.url, first.type) == (tenant, URL, "job.cancelled")
        assert (first.subject_id, first.status) == (outbox[0], JobState.CANCELLED)
        assert (first.attempt, first.num_tries, first.is_refused) == (1, 1, False)
        assert first.secrets == (get_webhook_secret(db, tenant).secret,)
        assert first.secrets[0] not in repr(first)

    def test_a_delivery_links_to_the_files_of_its_job_alone(
        self, db: Database, tenant: str, outbox: list[str], query: Query
    ) -> None:
        query("INSERT INTO blobs (digest, num_bytes) VALUES ('d', 3)")
        row = "INSERT INTO files (id, tenant_id, digest, num_bytes, filename, purpose, result_of, position, media_type)"
        query(
            f"{row} VALUES ('f', :tenant, 'd', 3, 'a.png', 'job_output', :job, 0, 'image/png')",
            tenant=tenant,
            job=outbox[1],
        )
        first, second, third = take_due(db, 10, 60)
        assert (first.files, third.files) == ((), ())
        (file,) = json.loads(body_of(second))["data"]["files"]
        path, expires, signature = re.fullmatch(r"(.*)\?expires=(\d+)&signature=(\w+)", file["url"]).groups()
        assert path == f"/results/{tenant}/{outbox[1]}/0"
        assert file["url_expires_at"] == int(expires) > NOW.timestamp()
        check_link(db, tenant, outbox[1], 0, int(expires), signature)
        with pytest.raises(NotFound):
            check_link(db, tenant, outbox[0], 0, int(expires), signature)

    def test_an_endpoints_delivery_has_its_secret(self, db: Database, tenant: str, accept_one: AcceptOne) -> None:
        endpoint = create_endpoint(db, tenant, url=URL, actor="mia")
        request_cancel(db, tenant, accept_one())
        assert [delivery.secrets for delivery in take_due(db, 10, 60)] == [(endpoint.secret,)]

    def test_the_longest_due_come_first_and_once(self, db: Database, outbox: list[str]) -> None:
        assert [delivery.subject_id for delivery in take_due(db, 2, 60)] == outbox[:2]
        assert [delivery.subject_id for delivery in take_due(db, 2, 60)] == outbox[2:]
        assert take_due(db, 2, 60) == []

    def test_those_for_busy_receivers_and_tenants_stay(
        self, db: Database, tenant: str, outbox: list[str], accept_one: AcceptOne
    ) -> None:
        endpoint = create_endpoint(db, tenant, url=f"{URL}/2", actor="mia")
        request_cancel(db, tenant, accept_one())
        (host,) = {delivery.receiver for delivery in take_due(db, 3, 0)}
        assert host == f"{tenant} example.com"
        (other,) = take_due(db, 10, 0, busy=[host])
        assert (other.endpoint_id, other.receiver) == (endpoint.id, f"{tenant} {endpoint.id}")
        assert len(take_due(db, 10, 0, busy=[other.receiver])) == 3
        assert take_due(db, 10, 0, busy_tenants=[tenant]) == []

    def test_those_behind_a_busy_receivers_backlog_are_found(
        self,
        db: Database,
        tenant: str,
        outbox: list[str],
        accept_one: AcceptOne,
        query: Query,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(webhooks, "LOOKED_AT", 2)
        other = create_tenant(db, "globex")
        endpoints = [create_endpoint(db, other, url=f"{URL}/{n}", actor="mia") for n in range(3)]
        request_cancel(db, other, accept_one(tenant_id=other))
        (host,) = {delivery.receiver for delivery in take_due(db, 2, 0)}
        first, second, third = (f"{other} {endpoint.id}" for endpoint in endpoints)
        query("UPDATE webhook_deliveries SET next_attempt_at = now() + interval '1 day' WHERE endpoint_id IS NOT NULL")
        assert take_due(db, 10, 0, busy=[host]) == []
        query("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE endpoint_id IS NOT NULL")
        assert {found.receiver for found in take_due(db, 10, 0, busy=[host, second])} == {first, third}
        assert {found.receiver for found in take_due(db, 10, 0, busy_tenants=[tenant])} == {first, second, third}
        assert take_due(db, 10, 0, busy=[host], busy_tenants=[other]) == []
        assert len(take_due(db, 2, 60, busy=[host])) == 2
        assert len(take_due(db, 2, 60, busy=[host])) == 1
        assert [found.receiver for found in take_due(db, 10, 0)] == [host] * 2

    def test_those_that_are_done_hide_none_that_is_due(
        self, db: Database, tenant: str, accept_one: AcceptOne, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(webhooks, "LOOKED_AT", 1)
        for _ in range(2):
            job_id = accept_one(webhook={"url": URL})
            request_cancel(db, tenant, job_id)
            (delivery,) = take_due(db, 10, 0)
            assert delivery.subject_id == job_id
            record_delivered(db, delivery, tried())

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


class TestWhatAJobsOwnUrlIsTold:
    @pytest.mark.parametrize(
        ("events", "told"),
        [(None, ["response.cancelled"]), (["job.failed"], []), (["job.cancelled", "job.failed"], ["job.cancelled"])],
    )
    def test_only_what_it_names(
        self, db: Database, tenant: str, accept_one: AcceptOne, events: list[str] | None, told: list[str]
    ) -> None:
        response = NewResponse(None, is_stored=True, is_background=True, input=[], request={})
        webhook = {"url": URL} if events is None else {"url": URL, "events": events}
        request_cancel(db, tenant, accept_one(webhook=webhook, response=response))
        assert [row.type for row in list_deliveries(db, tenant)] == told


class TestSettling:
    def test_a_delivered_one_is_done(self, db: Database, tenant: str, outbox: list[str]) -> None:
        delivery = take_due(db, 1, 0)[0]
        record_delivered(db, delivery, tried(204))
        assert delivery.id not in {other.id for other in take_due(db, 10, 0)}
        row, tries = get_delivery(db, tenant, delivery.id)
        assert (row.state, row.attempts, row.last_status, row.last_error) == ("delivered", 1, 204, None)
        assert row.delivered_at is not None
        assert [(one.attempt, one.at, one.duration_ms, one.status, one.error) for one in tries] == [
            (1, NOW, 12, 204, None)
        ]

    def test_a_failed_try_comes_again_at_its_time(
        self, db: Database, tenant: str, outbox: list[str], query: Query
    ) -> None:
        delivery = take_due(db, 1, 0)[0]
        assert fail(db, delivery) is None
        assert delivery.id not in {other.id for other in take_due(db, 10, 60)}
        (row,) = query(
            "SELECT state, last_status, last_error, extract(epoch FROM next_attempt_at - now()) AS wait_s"
            " FROM webhook_deliveries WHERE id = :id",
            id=delivery.id,
        )
        assert (row["state"], row["last_status"], row["last_error"]) == ("pending", 500, "answered 500")
        assert 290 < row["wait_s"] <= 300
        query("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE id = :id", id=delivery.id)
        assert [(again.id, again.attempt) for again in take_due(db, 10, 60)] == [(delivery.id, 2)]
        assert [one.error for one in get_delivery(db, tenant, delivery.id)[1]] == ["answered 500"]

    def test_the_last_failed_try_gives_up(self, db: Database, tenant: str, outbox: list[str]) -> None:
        delivery = take_due(db, 1, 0)[0]
        record_failed(db, delivery, tried(None, "connection refused"), retry_in_s=None, patience_s=DAY_S)
        (row,) = of_job(db, tenant, delivery.subject_id)
        assert (row.state, row.last_status, row.last_error) == ("failed", None, "connection refused")
        assert delivery.id not in {other.id for other in take_due(db, 10, 0)}

    def test_what_is_settled_stays_settled(self, db: Database, tenant: str, outbox: list[str]) -> None:
        delivery = take_due(db, 1, 0)[0]
        record_delivered(db, delivery, tried())
        fail(db, delivery, retry_in_s=0)
        assert [row.state for row in of_job(db, tenant, delivery.subject_id)] == ["delivered"]

    def test_a_try_that_was_taken_over_gives_nothing_up(self, db: Database, tenant: str, outbox: list[str]) -> None:
        slow = take_due(db, 1, 0)[0]
        (taken_over,) = [other for other in take_due(db, 10, 60) if other.id == slow.id]
        fail(db, slow, retry_in_s=None)
        assert of_job(db, tenant, slow.subject_id)[0].state == "pending"
        record_delivered(db, taken_over, tried())
        assert of_job(db, tenant, slow.subject_id)[0].state == "delivered"

    def test_only_the_last_tries_are_kept(self, db: Database, tenant: str, outbox: list[str], query: Query) -> None:
        delivery, other = take_due(db, 2, 0)
        fail(db, other)
        for number in range(1, ATTEMPTS_KEPT + 4):
            query("UPDATE webhook_deliveries SET attempts = :n WHERE id = :id", n=number, id=delivery.id)
            fail(db, replace(delivery, attempt=number, num_tries=number))
        kept = [one.attempt for one in get_delivery(db, tenant, delivery.id)[1]]
        assert kept == list(range(4, ATTEMPTS_KEPT + 4))
        assert len(get_delivery(db, tenant, other.id)[1]) == 1, "each delivery keeps its own"

    def test_those_taken_and_not_tried_wait_and_are_not_counted(
        self, db: Database, tenant: str, outbox: list[str], query: Query
    ) -> None:
        first, second, delivered = take_due(db, 10, 0)
        record_delivered(db, delivered, tried())
        postpone(db, [first.id, delivered.id], 300)
        postpone(db, [], 0)
        assert [other.id for other in take_due(db, 10, 60)] == [second.id]
        # A second sender with the same one, which it took before it was postponed.
        postpone(db, [first.id], 0)
        assert take_due(db, 10, 60) == []
        assert get_delivery(db, tenant, delivered.id)[0].attempts == 1
        query("UPDATE webhook_deliveries SET next_attempt_at = now()")
        assert {(again.id, again.attempt) for again in take_due(db, 10, 60)} == {(first.id, 1), (second.id, 3)}


class TestDisabling:
    @pytest.fixture
    def due(self, db: Database, tenant: str, accept_one: AcceptOne) -> Delivery:
        """An event for the first of three endpoints, the last of which wants something else."""
        first = create_endpoint(db, tenant, url=URL, actor="mia")
        create_endpoint(db, tenant, url=f"{URL}/2", actor="mia")
        create_endpoint(db, tenant, url=f"{URL}/3", events=["batch.failed"], actor="mia")
        request_cancel(db, tenant, accept_one())
        return next(delivery for delivery in take_due(db, 10, 60) if delivery.endpoint_id == first.id)

    def test_one_that_is_gone(self, db: Database, tenant: str, due: Delivery, accept_one: AcceptOne) -> None:
        assert fail(db, due, 410, retry_in_s=None) == "gone"
        endpoint = get_endpoint(db, tenant, due.endpoint_id or "")
        assert (endpoint.disabled_reason, endpoint.disabled_at is None) == ("gone", False)
        entry = list_entries(db, tenant)[0]
        assert (entry.action, entry.resource, entry.detail) == (
            "webhook_endpoint.disabled",
            endpoint.id,
            {"reason": "gone"},
        )
        # Its owner's other endpoints hear of it, if they want to; it hears nothing more itself.
        (notice,) = list_deliveries(db, tenant, DeliveryFilter(type="webhook_endpoint.disabled"))
        assert (notice.url, notice.about_endpoint_id) == (f"{URL}/2", endpoint.id)
        (second,) = (one for one in list_endpoints(db, tenant) if one.url == f"{URL}/2")
        request_cancel(db, tenant, accept_one())
        (other,) = (one for one in take_due(db, 10, 60) if one.endpoint_id == second.id and one.type.startswith("job."))
        assert fail(db, other, 410, retry_in_s=None) == "gone"
        notices = list_deliveries(db, tenant, DeliveryFilter(type="webhook_endpoint.disabled"))
        assert [one.id for one in notices] == [notice.id], "an endpoint that is disabled hears nothing"
        enable_endpoint(db, tenant, second.id, actor="mia")
        job_id = accept_one()
        request_cancel(db, tenant, job_id)
        assert [row.url for row in of_job(db, tenant, job_id)] == [f"{URL}/2"]

    def test_one_that_failed_for_days(self, db: Database, tenant: str, due: Delivery, query: Query) -> None:
        def later(days: float) -> None:
            query(
                "UPDATE webhook_endpoints SET failing_since = failing_since - make_interval(secs => :s),"
                " last_failed_at = last_failed_at - make_interval(secs => :s)",
                s=days * DAY_S,
            )

        def fail_again() -> str | None:
            return fail(db, due, retry_in_s=0)

        assert fail_again() is None
        later(3)
        assert fail_again() is None
        later(1.9)
        assert fail_again() is None
        assert get_endpoint(db, tenant, due.endpoint_id or "").disabled_at is None
        later(0.2)
        assert fail_again() == "failing"
        assert fail_again() is None, "it is said once"
        assert get_endpoint(db, tenant, due.endpoint_id or "").disabled_reason == "failing"

    @pytest.mark.parametrize("is_delivered", [False, True])
    def test_a_try_that_is_settled_locks_the_endpoint_before_the_delivery(
        self, db: Database, tenant: str, due: Delivery, query: Query, is_delivered: bool
    ) -> None:
        assert fail(db, due, retry_in_s=0) is None, "so that a success has something to change"
        (again,) = (delivery for delivery in take_due(db, 10, 60) if delivery.id == due.id)

        def settle() -> None:
            if is_delivered:
                record_delivered(db, again, tried())
            else:
                fail(db, again, retry_in_s=0)

        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        with ThreadPoolExecutor(1) as threads:
            with db.begin() as connection:
                lock_endpoint(connection, tenant, due.endpoint_id or "")
                settled = threads.submit(settle)
                while not query(waiting):
                    assert not settled.done()
                # As ``recover`` does next, and the removal of an endpoint.
                held = text("SELECT id FROM webhook_deliveries WHERE id = :id FOR UPDATE NOWAIT")
                assert connection.execute(held, {"id": due.id}).scalar_one() == due.id
            settled.result(10)

    @pytest.mark.parametrize("between", ["a success", "nothing"])
    def test_days_with_a_success_or_without_a_try_are_not_days_of_failure(
        self, db: Database, tenant: str, due: Delivery, query: Query, between: str
    ) -> None:
        assert fail(db, due, retry_in_s=0) is None
        query("UPDATE webhook_endpoints SET failing_since = failing_since - interval '30 days'")
        if between == "a success":
            record_delivered(db, due, tried())
            query("UPDATE webhook_deliveries SET state = 'pending'")
        else:
            query("UPDATE webhook_endpoints SET last_failed_at = last_failed_at - interval '30 days'")
        assert fail(db, due) is None
        endpoint = get_endpoint(db, tenant, due.endpoint_id or "")
        assert endpoint.disabled_at is None
        assert endpoint.failing_since is not None

    def test_a_success_clears_the_failures_of_its_own_endpoint_only(
        self, db: Database, tenant: str, due: Delivery, query: Query
    ) -> None:
        fail(db, due)
        query("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE id <> :id", id=due.id)
        (other,) = take_due(db, 10, 60)
        record_delivered(db, other, tried())
        assert get_endpoint(db, tenant, due.endpoint_id or "").failing_since is not None

    def test_what_was_under_way_to_it_is_given_up_untried_unless_it_is_enabled(
        self, db: Database, tenant: str, due: Delivery, accept_one: AcceptOne, query: Query
    ) -> None:
        for _ in range(2):
            request_cancel(db, tenant, accept_one())
        fail(db, due, 410, retry_in_s=None)
        first, second = (each for each in take_due(db, 10, 60) if each.endpoint_id == due.endpoint_id)
        assert first.is_refused
        record_refused(db, first)
        row, tries = get_delivery(db, tenant, first.id)
        assert (row.state, row.attempts, row.last_error, tries) == ("failed", 0, Naming("disabled"), [])
        enable_endpoint(db, tenant, due.endpoint_id or "", actor="mia")
        record_refused(db, second)
        assert get_delivery(db, tenant, second.id)[0].state == "pending"


def test_a_delivery_is_due_when_its_time_has_come(db: Database, tenant: str, accept_one: AcceptOne) -> None:
    probe = WorkProbe(db, {"deliveries": DUE})
    request_cancel(db, tenant, accept_one(webhook={"url": "https://example.com/hook"}))
    assert probe.look().has("deliveries")
    assert take_due(db, 10, lease_s=60)
    assert not probe.look().has("deliveries")

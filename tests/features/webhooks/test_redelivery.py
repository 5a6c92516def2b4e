"""Reading deliveries, and redelivery: of one, of a test, and of all that an endpoint missed."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from headrace.features.responses.new_response import NewResponse
from headrace.features.webhooks.delivery_log import DeliveryFilter, get_delivery, list_deliveries, redeliver
from headrace.features.webhooks.endpoints import Endpoint, create_endpoint, delete_endpoint, enable_endpoint
from headrace.features.webhooks.outbox import AttemptResult, Delivery, record_delivered, record_failed, take_due
from headrace.features.webhooks.redelivery import RESTART, MissedEvents, recover, send_test
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, InvalidRequest, NotFound
from headrace.store.ids import new_id
from headrace.store.jobs.erasure import erase_inputs
from headrace.store.jobs.jobs import request_cancel
from tests.store.making import AcceptOne, Query

URL = "https://example.com/hook"
TOOK_IT = AttemptResult(datetime(2026, 11, 26, tzinfo=UTC), 3, 200, None)
FAILED = replace(TOOK_IT, status=500, error="answered 500")
GONE = replace(TOOK_IT, status=410, error="answered 410")
ALWAYS = MissedEvents(0)


@pytest.fixture
def endpoint(db: Database, tenant: str) -> Endpoint:
    return create_endpoint(db, tenant, url=URL, events=["job.cancelled", "batch.completed"], actor="mia")


def give_up(db: Database, delivery: Delivery, tried: AttemptResult = FAILED) -> None:
    record_failed(db, delivery, tried, retry_in_s=None, patience_s=86_400)


class TestReading:
    @pytest.fixture
    def jobs(self, db: Database, tenant: str, endpoint: Endpoint, accept_one: AcceptOne) -> list[str]:
        """Jobs with a delivery to the endpoint, the first also to its own URL, in the order of their ends."""
        ids = [accept_one(webhook={"url": f"{URL}/own"}), accept_one(), accept_one()]
        for job_id in ids:
            request_cancel(db, tenant, job_id)
        return ids

    def test_newest_first_by_page_and_filter(
        self, db: Database, tenant: str, other_tenant: str, endpoint: Endpoint, jobs: list[str]
    ) -> None:
        everything = list_deliveries(db, tenant)
        assert [row.job_id for row in everything] == [jobs[2], jobs[1], jobs[0], jobs[0]]
        pages = [
            list_deliveries(db, tenant, limit=1, after=after)[0].id
            for after in (None, *(row.id for row in everything[:-1]))
        ]
        assert pages == [row.id for row in everything]
        assert list_deliveries(db, tenant, after=everything[-1].id) == []
        record_delivered(db, take_due(db, 1, 60)[0], TOOK_IT)
        for only, num in (
            (DeliveryFilter(job_id=jobs[0]), 2),
            (DeliveryFilter(endpoint_id=endpoint.id), 3),
            (DeliveryFilter(job_id=jobs[0], endpoint_id=endpoint.id), 1),
            (DeliveryFilter(state="delivered"), 1),
            (DeliveryFilter(state="pending"), 3),
            (DeliveryFilter(type="job.failed"), 0),
        ):
            assert len(list_deliveries(db, tenant, only)) == num, only
        assert list_deliveries(db, other_tenant) == []
        assert list_deliveries(db, other_tenant, DeliveryFilter(job_id=jobs[0])) == []
        with pytest.raises(InvalidRequest) as refused:
            list_deliveries(db, other_tenant, after=everything[0].id)
        assert refused.value.param == "after"
        with pytest.raises(NotFound):
            get_delivery(db, other_tenant, everything[0].id)


class TestRedelivering:
    @pytest.mark.parametrize("end", ["delivered", "failed", "pending"])
    def test_it_is_due_now_under_its_id_with_ten_new_tries(
        self, db: Database, tenant: str, endpoint: Endpoint, accept_one: AcceptOne, query: Query, end: str
    ) -> None:
        create_endpoint(db, tenant, url=f"{URL}/2", events=["batch.failed"], actor="mia")
        query("UPDATE webhook_endpoints SET disabled_at = now() WHERE id <> :id", id=endpoint.id)
        request_cancel(db, tenant, accept_one())
        record_delivered(db, take_due(db, 1, 60)[0], TOOK_IT)
        request_cancel(db, tenant, accept_one())
        query("UPDATE webhook_deliveries SET attempts = 8")
        (first,) = take_due(db, 1, 3600)
        match end:
            case "delivered":
                record_delivered(db, first, TOOK_IT)
            case "failed":
                give_up(db, first)
            case _:
                assert take_due(db, 1, 0) == []
        again = redeliver(db, tenant, first.id, actor="mia")
        assert (again.id, again.state, again.attempts, again.delivered_at) == (first.id, "pending", 9, None)
        # A delivery in progress that fails must not end the one just requested.
        give_up(db, first)
        (second,) = take_due(db, 10, 0)
        assert (second.id, second.attempt, second.num_tries) == (first.id, 1, 10)
        entry = list_entries(db, tenant)[0]
        assert (entry.action, entry.detail["was"]) == ("webhook_delivery.redelivered", end)

    def test_not_to_another_tenants_nor_to_an_endpoint_that_is_disabled(
        self, db: Database, tenant: str, other_tenant: str, endpoint: Endpoint, accept_one: AcceptOne
    ) -> None:
        request_cancel(db, tenant, accept_one())
        (delivery,) = take_due(db, 1, 60)
        with pytest.raises(NotFound):
            redeliver(db, other_tenant, delivery.id, actor="eve")
        give_up(db, delivery, GONE)
        with pytest.raises(Conflict) as refused:
            redeliver(db, tenant, delivery.id, actor="mia")
        assert refused.value.code == "endpoint_disabled"
        assert get_delivery(db, tenant, delivery.id)[0].state == "failed"


def test_a_test_is_sent_whatever_the_endpoint_wants(
    db: Database, tenant: str, other_tenant: str, endpoint: Endpoint, accept_one: AcceptOne
) -> None:
    queued = send_test(db, tenant, endpoint.id, actor="mia")
    (sent,) = take_due(db, 10, 60)
    assert (sent.id, sent.type, sent.subject_id) == (queued.id, "webhook.test", endpoint.id)
    assert (sent.url, sent.secrets) == (URL, (endpoint.secret,))
    assert list_entries(db, tenant)[0].action == "webhook_endpoint.tested"
    with pytest.raises(NotFound):
        send_test(db, other_tenant, endpoint.id, actor="eve")
    give_up(db, sent, GONE)
    with pytest.raises(Conflict):
        send_test(db, tenant, endpoint.id, actor="mia")
    with pytest.raises(Conflict):
        recover(db, tenant, endpoint.id, ALWAYS, kept_s=None, limit=10, actor="mia")


class TestRecovering:
    def end(self, db: Database, tenant: str, accept_one: AcceptOne, **changes: object) -> str:
        job_id = accept_one(**changes)
        request_cancel(db, tenant, job_id)
        return job_id

    def test_what_failed_and_what_was_never_written_but_nothing_twice(
        self, db: Database, tenant: str, other_tenant: str, endpoint: Endpoint, accept_one: AcceptOne, query: Query
    ) -> None:
        took, failing, waiting = (self.end(db, tenant, accept_one) for _ in range(3))
        record_delivered(db, take_due(db, 1, 60)[0], TOOK_IT)
        give_up(db, take_due(db, 1, 60)[0], GONE)
        (under_way,) = take_due(db, 1, 3600)
        # While it is disabled nothing is written for it.
        response = NewResponse(None, is_stored=True, is_background=True, input=[], request={})
        unheard = [self.end(db, tenant, accept_one), self.end(db, tenant, accept_one, response=response)]
        self.end(db, tenant, accept_one, webhook={"events": []})  # a batch's line
        self.end(db, other_tenant, accept_one, tenant_id=other_tenant)
        accept_one()  # has not ended
        batch = _batch(query, tenant, "completed")
        _batch(query, tenant, "failed")
        _batch(query, other_tenant, "completed")
        enable_endpoint(db, tenant, endpoint.id, actor="mia")

        for num, expected in ((2, 2), (2, 2), (2, 0)):
            assert recover(db, tenant, endpoint.id, ALWAYS, kept_s=None, limit=num, actor="mia") == expected
        due = take_due(db, 20, 60)
        assert {(one.type, one.subject_id) for one in due} == {
            ("job.cancelled", failing),
            *(("job.cancelled", job_id) for job_id in unheard),
            ("batch.completed", batch),
        }
        assert {one.secrets for one in due} == {(endpoint.secret,)}
        assert under_way.subject_id == waiting
        # The time in an event's body is when it happened, not when it was recovered.
        (row,) = query("SELECT completed_at FROM jobs WHERE id = :id", id=unheard[0])
        assert next(one.created_at for one in due if one.subject_id == unheard[0]) == row["completed_at"]
        for one in due:
            record_delivered(db, one, TOOK_IT)
        assert recover(db, tenant, endpoint.id, ALWAYS, kept_s=None, limit=10, actor="mia") == 0
        assert get_delivery(db, tenant, _id_of(db, tenant, took))[0].attempts == 1
        entry = list_entries(db, tenant)[0]
        assert (entry.action, entry.detail["num_queued"]) == ("webhook_endpoint.recovered", 0)

    def test_of_a_time_range_and_again_what_was_delivered_before(
        self, db: Database, tenant: str, endpoint: Endpoint, accept_one: AcceptOne, query: Query
    ) -> None:
        old, lost, new = (self.end(db, tenant, accept_one) for _ in range(3))
        for hours, job_id in ((9, old), (5, lost), (1, new)):
            at = f"now() - interval '{hours} hours'"
            query(f"UPDATE jobs SET completed_at = {at} WHERE id = :id", id=job_id)
            query(f"UPDATE webhook_deliveries SET created_at = {at} WHERE job_id = :id", id=job_id)
        for one in take_due(db, 10, 60):
            record_delivered(db, one, TOOK_IT)
        query("UPDATE webhook_deliveries SET delivered_at = created_at")
        now = int(datetime.now(UTC).timestamp())
        range_ = MissedEvents(now - 6 * 3600, now - 4 * 3600)
        assert recover(db, tenant, endpoint.id, range_, kept_s=None, limit=10, actor="mia") == 0
        for expected in (1, 0):
            asked = replace(range_, delivered_before_s=now - 60)
            assert recover(db, tenant, endpoint.id, asked, kept_s=None, limit=10, actor="mia") == expected
            for one in take_due(db, 10, 60):
                assert (one.subject_id, one.attempt, one.num_tries) == (lost, 1, 2)
                record_delivered(db, one, TOOK_IT)
        # Events that are not in the outbox, in the same range.
        delete_endpoint(db, tenant, endpoint.id, actor="mia")
        other = create_endpoint(db, tenant, url=URL, actor="mia")
        assert recover(db, tenant, other.id, range_, kept_s=None, limit=10, actor="mia") == 1
        assert [row.job_id for row in list_deliveries(db, tenant)] == [lost]

    def test_a_url_that_was_told_as_the_jobs_own_is_not_told_again(
        self, db: Database, tenant: str, accept_one: AcceptOne
    ) -> None:
        self.end(db, tenant, accept_one, webhook={"url": URL})
        endpoint = create_endpoint(db, tenant, url=URL, actor="mia")
        assert recover(db, tenant, endpoint.id, ALWAYS, kept_s=None, limit=10, actor="mia") == 0

    def test_of_what_is_not_kept_nothing_is_told_again(
        self, db: Database, tenant: str, endpoint: Endpoint, accept_one: AcceptOne, query: Query
    ) -> None:
        line, purged, old, told = (
            self.end(db, tenant, accept_one, webhook=webhook) for webhook in ({"events": []}, None, None, None)
        )
        with db.begin() as connection:
            erase_inputs(connection, [line, purged])
        query("DELETE FROM webhook_deliveries")
        query("UPDATE jobs SET completed_at = now() - interval '2 days' WHERE id = :id", id=old)
        # With a retention of one day the delivery of the older event is not known any more.
        assert recover(db, tenant, endpoint.id, ALWAYS, kept_s=86_400, limit=10, actor="mia") == 1
        assert [row.job_id for row in list_deliveries(db, tenant)] == [told]
        assert recover(db, tenant, endpoint.id, ALWAYS, kept_s=3 * 86_400, limit=10, actor="mia") == 1
        assert {row.job_id for row in list_deliveries(db, tenant)} == {told, old}

    @pytest.mark.parametrize("is_written", [True, False])
    def test_its_oldest_come_first_and_no_tests(
        self, db: Database, tenant: str, endpoint: Endpoint, accept_one: AcceptOne, query: Query, is_written: bool
    ) -> None:
        create_endpoint(db, tenant, url=f"{URL}/2", actor="mia")
        newer, older = (self.end(db, tenant, accept_one) for _ in range(2))
        query("UPDATE jobs SET completed_at = now() - interval '1 hour' WHERE id = :id", id=older)
        query("UPDATE webhook_deliveries SET created_at = now() - interval '1 hour' WHERE job_id = :id", id=older)
        if not is_written:
            query("DELETE FROM webhook_deliveries")
        send_test(db, tenant, endpoint.id, actor="mia")
        for one in take_due(db, 10, 60):
            give_up(db, one)
        for expected in (older, newer):
            assert recover(db, tenant, endpoint.id, ALWAYS, kept_s=None, limit=1, actor="mia") == 1
            (one,) = take_due(db, 10, 60)
            assert (one.endpoint_id, one.subject_id) == (endpoint.id, expected)
            record_delivered(db, one, TOOK_IT)
        assert recover(db, tenant, endpoint.id, ALWAYS, kept_s=None, limit=1, actor="mia") == 0

    def test_its_limit_holds_under_every_plan(
        self, db: Database, tenant: str, endpoint: Endpoint, accept_one: AcceptOne
    ) -> None:
        for _ in range(3):
            self.end(db, tenant, accept_one)
        for one in take_due(db, 10, 60):
            give_up(db, one)
        with db.begin(tenant_id=tenant) as connection:
            # A nested loop runs an IN (SELECT ... LIMIT ... FOR UPDATE) once a row, and each run locks other rows.
            for plan in ("hashjoin", "mergejoin", "hashagg", "sort", "material"):
                connection.exec_driver_sql(f"SET LOCAL enable_{plan} = off")
            values = {"endpoint_id": endpoint.id, "tenant_id": tenant, "test": "webhook.test", "since_s": 0}
            nothing = {"until_s": None, "delivered_before_s": None}
            assert connection.execute(RESTART, values | nothing | {"limit": 1}).rowcount == 1

    def test_only_its_tenant_recovers_it(self, db: Database, other_tenant: str, endpoint: Endpoint) -> None:
        with pytest.raises(NotFound):
            recover(db, other_tenant, endpoint.id, ALWAYS, kept_s=None, limit=10, actor="eve")


def _id_of(db: Database, tenant: str, job_id: str) -> str:
    return list_deliveries(db, tenant, DeliveryFilter(job_id=job_id))[0].id


def _batch(query: Query, tenant: str, status: str) -> str:
    batch_id = new_id("batch")
    query(
        f"INSERT INTO batches (id, tenant_id, status, url, input_file_id, api_key_id, completion_window, expires_at,"
        f" {status}_at) VALUES (:id, :tenant, :status, '/v1/completions', 'f', 'k', '24h', now(), now())",
        id=batch_id,
        tenant=tenant,
        status=status,
    )
    return batch_id

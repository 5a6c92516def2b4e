"""Webhooks from the outbox to a real receiver: form, signature, retries, refusals, fairness, and a sender that dies."""

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from openai import InvalidWebhookSignatureError, OpenAI
from sqlalchemy import text

from headrace.features.responses.new_response import NewResponse
from headrace.features.webhooks import sender as sender_module
from headrace.features.webhooks.delivery_log import DeliveryFilter, DeliveryRecord, get_delivery, list_deliveries
from headrace.features.webhooks.endpoints import create_endpoint, get_endpoint, list_endpoints, rotate_secret
from headrace.features.webhooks.outbox import Delivery, take_due
from headrace.features.webhooks.receiver_fairness import ReceiverQueues
from headrace.features.webhooks.redelivery import send_test
from headrace.features.webhooks.secrets import get_webhook_secret, rotate_webhook_secret
from headrace.features.webhooks.sender import RETRY_S, WebhookSender, headers_of, judge, retry_after_s, retry_in_s
from headrace.store.calls.receiver_breaker import ReceiverBreaker
from headrace.store.calls.ssrf_guard import Reply
from headrace.store.db.database import Database
from headrace.store.ids import new_id
from headrace.store.jobs.jobs import NewJob, accept, request_cancel
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import create_tenant
from tests.processes import WAIT_S, wait_for
from tests.sealing import TurnedSeal
from tests.threads import threads_named
from tests.workers.receiver import Answer, Receiver

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
PAUSE_S = 900.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def open_settings(settings: Settings, no_second_try: None) -> Settings:
    """Settings that let a sender reach this machine, and wait for a receiver that stands still for a while."""
    changes = {"webhook_allow_http": True, "webhook_allow_networks": ("127.0.0.0/8",), "webhook_timeout_s": WAIT_S}
    return settings.model_copy(update=changes)


@pytest.fixture
def no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every pause so long that no delivery is tried again before a test makes it due."""
    monkeypatch.setattr(sender_module, "RETRY_S", (PAUSE_S, *RETRY_S[1:]))
    monkeypatch.setattr(sender_module, "ReceiverBreaker", partial(ReceiverBreaker, first_s=PAUSE_S, longest_s=3600.0))


@pytest.fixture
def sender(db: Database, open_settings: Settings) -> Iterator[WebhookSender]:
    sender = WebhookSender(db, open_settings)
    sender.start()
    yield sender
    sender.stop(5)


@pytest.fixture
def tenant(db: Database) -> str:
    return create_tenant(db, new_id("tenant"))


def end_job(db: Database, tenant: str, url: str | None, *, response: bool = False) -> str:
    """Bring a job to an end, which writes its delivery."""
    job = NewJob(
        id=new_id("job"),
        tenant_id=tenant,
        task="generate",
        model="tiny",
        model_version=1,
        queue="tiny@1",
        service_class=ServiceClass.STANDARD,
        priority=5,
        payload={},
        input_tokens=1,
        cost_tokens=10,
        metadata={},
        webhook={"url": url} if url else None,
        max_attempts=1,
        deadline_s=60,
        idempotency=None,
        announce=False,
        response=NewResponse(None, is_stored=True, is_background=True, input=[], request={}) if response else None,
    )
    accept(db, [job])
    request_cancel(db, tenant, job.id)
    return job.id


def only(db: Database, tenant: str, job_id: str) -> DeliveryRecord:
    (record,) = list_deliveries(db, tenant, DeliveryFilter(job_id=job_id))
    return record


def make_due(db: Database) -> None:
    with db.begin() as connection:
        connection.execute(text("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE state = 'pending'"))


def wait_of(db: Database, record: DeliveryRecord) -> float:
    """Seconds until the next try, by the database's clock."""
    with db.begin() as connection:
        now = connection.execute(text("SELECT now()")).scalar_one()
    return float((record.next_attempt_at - now).total_seconds())


def test_an_event_arrives_signed_thin_and_once(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender
) -> None:
    job_id = end_job(db, tenant, receiver.url("/hook?x=1"))
    (call,) = receiver.wait_calls(1)
    wait_for(lambda: only(db, tenant, job_id).state == "delivered")

    verified = standardwebhooks.Webhook(get_webhook_secret(db, tenant).secret).verify(call.body, call.headers)
    record = only(db, tenant, job_id)
    assert verified == {
        "id": record.id,
        "object": "event",
        "type": "job.cancelled",
        "created_at": int(record.created_at.timestamp()),
        "timestamp": record.created_at.isoformat(),
        "data": {"id": job_id, "object": "job", "status": "cancelled"},
    }
    assert call.headers["webhook-id"] == record.id
    assert call.headers["content-type"] == "application/json"
    assert (record.last_status, record.attempts, record.last_error) == (204, 1, None)
    assert len(receiver.calls) == 1


def test_a_sender_that_seldom_looks_sends_when_it_is_told(
    db: Database, tenant: str, receiver: Receiver, open_settings: Settings
) -> None:
    sender = WebhookSender(db, open_settings, look_every_s=3600.0)
    sender.start()
    try:
        for _ in range(2):
            time.sleep(0.3)
            job_id = end_job(db, tenant, receiver.url("/hook"))
            sender.notify_due()
            wait_for(lambda job_id=job_id: only(db, tenant, job_id).state == "delivered")
    finally:
        sender.stop(5)
    assert len(receiver.calls) == 2


def test_an_endpoint_is_signed_with_its_own_secret(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender
) -> None:
    endpoint = create_endpoint(db, tenant, url=receiver.url(), actor="tests")
    end_job(db, tenant, None)
    (call,) = receiver.wait_calls(1)
    standardwebhooks.Webhook(endpoint.secret).verify(call.body, call.headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(get_webhook_secret(db, tenant).secret).verify(call.body, call.headers)


def test_both_public_libraries_verify_an_event_of_every_kind(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender
) -> None:
    """Also while an old secret still signs, whichever of the two the receiver has."""
    old = create_endpoint(db, tenant, url=receiver.url(), actor="tests")
    new = rotate_secret(db, tenant, old.id, overlap_s=60, actor="tests")
    gone = create_endpoint(db, tenant, url=receiver.url("/gone"), events=["batch.failed"], actor="tests")
    receiver.answer = lambda call: Answer(410 if call.path == "/gone" else 204)
    job_id = end_job(db, tenant, None, response=True)
    tests = [send_test(db, tenant, endpoint.id, actor="tests") for endpoint in (old, gone)]
    calls = receiver.wait_calls(4, "/hook")
    seen = {}
    for secret in (old.secret, new.secret):
        client = OpenAI(api_key="none", webhook_secret=secret)
        for call in calls:
            assert standardwebhooks.Webhook(secret).verify(call.body, call.headers)
            event = client.webhooks.unwrap(call.body, call.headers)
            assert event.object == "event"
            assert event.id == call.headers["webhook-id"]
            seen[str(event.type)] = event.data.id
    assert seen == {
        "job.cancelled": job_id,
        "response.cancelled": job_id.replace("job_", "resp_"),
        "webhook.test": old.id,
        "webhook_endpoint.disabled": gone.id,
    }
    stranger = OpenAI(api_key="none", webhook_secret=gone.secret)
    for call in calls:
        with pytest.raises(InvalidWebhookSignatureError):
            stranger.webhooks.unwrap(call.body, call.headers)
    # The tests are read like any other delivery.
    wait_for(lambda: get_delivery(db, tenant, tests[1].id)[0].state == "failed")
    assert [one.status for one in get_delivery(db, tenant, tests[1].id)[1]] == [410]


def test_the_receivers_of_the_documentation_take_what_arrives_and_nothing_else(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[3] / "docs" / "webhooks.md"
    programs = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert programs
    end_job(db, tenant, receiver.url())
    (call,) = receiver.wait_calls(1)
    monkeypatch.setenv("WEBHOOK_SECRET", get_webhook_secret(db, tenant).secret)
    for program in programs:
        names: dict[str, Any] = {}
        exec(program, names)
        assert names["receive"](call.body, call.headers) == 204
        assert names["receive"](call.body + b" ", call.headers) == 401
        assert names["receive"](call.body, {}) == 401


def test_a_jobs_own_url_is_signed_by_both_of_the_tenants_secrets(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender
) -> None:
    secrets = [get_webhook_secret(db, tenant).secret]
    secrets.append(rotate_webhook_secret(db, tenant, overlap_s=60, actor="tests").secret)
    end_job(db, tenant, receiver.url())
    (call,) = receiver.wait_calls(1)
    assert len(call.headers["webhook-signature"].split(" ")) == 2
    for secret in secrets:
        standardwebhooks.Webhook(secret).verify(call.body, call.headers)


def test_a_failure_is_tried_again_under_the_same_id_with_a_new_signature(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender
) -> None:
    answers = iter([Answer(500, body=b"secret stack trace"), Answer(200)])
    receiver.answer = lambda _: next(answers)
    job_id = end_job(db, tenant, receiver.url())
    wait_for(lambda: only(db, tenant, job_id).last_status == 500)
    record = only(db, tenant, job_id)
    assert (record.state, record.last_error) == ("pending", "answered 500")
    assert 0.8 * PAUSE_S < wait_of(db, record) < 1.2 * PAUSE_S
    make_due(db)
    first, second = receiver.wait_calls(2)
    wait_for(lambda: only(db, tenant, job_id).state == "delivered")
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    standardwebhooks.Webhook(get_webhook_secret(db, tenant).secret).verify(second.body, second.headers)
    assert only(db, tenant, job_id).attempts == 2


def test_a_redirect_is_a_failure_and_never_followed(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender
) -> None:
    receiver.answer = lambda _: Answer(301, {"location": receiver.url("/elsewhere")})
    job_id = end_job(db, tenant, receiver.url("/hook"))
    wait_for(lambda: only(db, tenant, job_id).last_status == 301)
    assert only(db, tenant, job_id).state == "pending"
    assert [call.path for call in receiver.calls] == ["/hook"]


def test_gone_ends_the_delivery_and_disables_the_endpoint(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender
) -> None:
    receiver.answer = lambda _: Answer(410)
    create_endpoint(db, tenant, url=receiver.url(), actor="tests")
    job_id = end_job(db, tenant, None)
    wait_for(lambda: only(db, tenant, job_id).state == "failed")
    (endpoint,) = list_endpoints(db, tenant)
    assert endpoint.disabled_reason == "gone"
    end_job(db, tenant, None)
    assert len(list_deliveries(db, tenant)) == 1
    assert len(receiver.calls) == 1


def test_an_endpoint_that_fails_for_days_is_disabled_and_what_was_under_way_to_it_is_not_sent(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender
) -> None:
    receiver.answer = lambda _: Answer(500)
    endpoint = create_endpoint(db, tenant, url=receiver.url(), actor="tests")
    jobs = [end_job(db, tenant, None)]
    wait_for(lambda: only(db, tenant, jobs[0]).last_status == 500)
    jobs.append(end_job(db, tenant, None))
    wait_for(lambda: only(db, tenant, jobs[1]).last_status == 500)
    with db.begin() as connection:
        connection.execute(text("UPDATE webhook_endpoints SET failing_since = now() - interval '5 days'"))
        due = text("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE job_id = :id")
        connection.execute(due, {"id": jobs[0]})
    wait_for(lambda: get_endpoint(db, tenant, endpoint.id).disabled_reason == "failing")
    make_due(db)
    wait_for(lambda: {only(db, tenant, job_id).state for job_id in jobs} == {"failed"})
    assert only(db, tenant, jobs[1]).last_error == "the endpoint is disabled"
    assert len(receiver.calls) == 3


def test_an_overloaded_receiver_is_left_alone_for_a_while(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender
) -> None:
    receiver.answer = lambda call: Answer(502 if call.path == "/busy" else 204)
    endpoints = [create_endpoint(db, tenant, url=receiver.url(path), actor="tests") for path in ("/busy", "/well")]
    end_job(db, tenant, None)
    receiver.wait_calls(1, "/busy")
    wait_for(lambda: len(list_deliveries(db, tenant, DeliveryFilter(state="delivered"))) == 1)
    wait_for(lambda: only_of(db, tenant, endpoints[0].id).last_status == 502)
    # Another endpoint on the same host, of the same tenant, still gets its events.
    job_id = end_job(db, tenant, None)
    wait_for(lambda: len(list_deliveries(db, tenant, DeliveryFilter(state="delivered"))) == 2)
    waiting = [row for row in list_deliveries(db, tenant, DeliveryFilter(job_id=job_id)) if row.state == "pending"]
    assert [(row.endpoint_id, row.attempts) for row in waiting] == [(endpoints[0].id, 0)]
    assert len(receiver.wait_calls(1, "/busy")) == 1


def only_of(db: Database, tenant: str, endpoint_id: str) -> DeliveryRecord:
    (record,) = list_deliveries(db, tenant, DeliveryFilter(endpoint_id=endpoint_id))
    return record


def test_retry_after_is_honoured(db: Database, tenant: str, receiver: Receiver, sender: WebhookSender) -> None:
    receiver.answer = lambda _: Answer(429, {"retry-after": "1000"})
    job_id = end_job(db, tenant, receiver.url())
    wait_for(lambda: only(db, tenant, job_id).last_status == 429)
    assert 980 < wait_of(db, only(db, tenant, job_id)) <= 1000
    # The receiver as a whole is left alone too: another event for it is not even tried.
    other = end_job(db, tenant, receiver.url("/other"))
    elsewhere = Receiver()
    try:
        end_job(db, tenant, elsewhere.url())
        elsewhere.wait_calls(1)
    finally:
        elsewhere.close()
    assert only(db, tenant, other).attempts == 0
    assert len(receiver.calls) == 1


def test_the_last_try_is_the_last(db: Database, tenant: str, receiver: Receiver, sender: WebhookSender) -> None:
    receiver.answer = lambda _: Answer(500)
    with db.begin() as connection:
        connection.execute(text("ALTER TABLE webhook_deliveries ALTER attempts SET DEFAULT 9"))
    try:
        job_id = end_job(db, tenant, receiver.url())
    finally:
        with db.begin() as connection:
            connection.execute(text("ALTER TABLE webhook_deliveries ALTER attempts SET DEFAULT 0"))
    wait_for(lambda: only(db, tenant, job_id).state == "failed")
    assert (only(db, tenant, job_id).attempts, len(receiver.calls)) == (10, 1)


def test_an_address_that_is_not_public_is_never_called(
    db: Database, tenant: str, receiver: Receiver, settings: Settings
) -> None:
    job_id = end_job(db, tenant, receiver.url())
    sender = WebhookSender(db, settings.model_copy(update={"webhook_allow_http": True}))
    sender.start()
    try:
        wait_for(lambda: only(db, tenant, job_id).last_error)
    finally:
        sender.stop(5)
    record = only(db, tenant, job_id)
    assert (record.state, record.last_status, "not public" in str(record.last_error)) == ("pending", None, True)
    assert receiver.calls == []


def test_slow_receivers_delay_nobody(db: Database, tenant: str, receiver: Receiver, sender: WebhookSender) -> None:
    """A hundred events of a tenant with a silent receiver, before one of another tenant."""
    receiver.answer = lambda call: Answer(drip=b"no") if call.path.startswith("/slow") else Answer()
    slow = [end_job(db, tenant, receiver.url(f"/slow/{index}")) for index in range(100)]
    receiver.wait_calls(4, "/slow")
    other = create_tenant(db, new_id("tenant"))
    end_job(db, other, receiver.url("/quick"))
    receiver.wait_calls(1, "/quick")
    # No more than a quarter of the senders ever wait for the slow one, and after three failures it is left alone.
    assert len(receiver.wait_calls(4, "/slow")) == 4
    receiver.released.set()
    wait_for(lambda: sum(only(db, tenant, job_id).last_error is not None for job_id in slow) >= 4)
    assert len(receiver.wait_calls(4, "/slow")) <= 6
    # Deliveries in progress were put back without counting a try.
    assert {only(db, tenant, job_id).attempts for job_id in slow} == {0, 1}


class Hanging:
    """A client for which only the quick receiver answers before the end of the test."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.is_called = threading.Event()
        self.num_waiting = 0

    def post(self, url: str, **_: Any) -> Reply:
        if "quick" in url:
            self.is_called.set()
        else:
            self.num_waiting += 1
            self.ended.wait(2 * WAIT_S)
        return Reply(204, {})


def test_tenants_with_many_slow_receivers_together_leave_senders_to_another(
    db: Database, open_settings: Settings
) -> None:
    for number in range(4):
        tenant = create_tenant(db, new_id("tenant"))
        for index in range(25):
            end_job(db, tenant, f"https://slow{number}-{index}.example/hook")
    client = Hanging()
    sender = WebhookSender(db, open_settings, client)  # type: ignore[arg-type]
    sender.start()
    try:
        # One more for a tenant that comes when the three quarters are taken already.
        wait_for(lambda: client.num_waiting >= 12, "slow receivers have three quarters of the senders")
        end_job(db, create_tenant(db, new_id("tenant")), "https://quick.example/hook")
        assert client.is_called.wait(WAIT_S), "the senders of the slow receivers are all still waiting"
    finally:
        client.ended.set()
        sender.stop(10)


def test_many_events_for_one_receiver_go_out_swiftly(
    db: Database, tenant: str, receiver: Receiver, open_settings: Settings
) -> None:
    """As soon as the receiver has room, and not at the sender's next look."""
    jobs = [end_job(db, tenant, receiver.url(f"/hook/{index}")) for index in range(48)]
    sender = WebhookSender(db, open_settings, look_every_s=3600.0)
    sender.start()
    try:
        receiver.wait_calls(48)
        wait_for(lambda: {only(db, tenant, job_id).state for job_id in jobs} == {"delivered"})
    finally:
        sender.stop(5)
    assert len({call.headers["webhook-id"] for call in receiver.calls}) == len(receiver.calls) == 48


def test_two_senders_share_and_send_nothing_twice(
    db: Database, tenant: str, receiver: Receiver, open_settings: Settings
) -> None:
    jobs = [end_job(db, tenant, receiver.url(f"/hook/{index}")) for index in range(30)]
    senders = [WebhookSender(db, open_settings) for _ in range(2)]
    for sender in senders:
        sender.start()
    try:
        wait_for(lambda: {only(db, tenant, job_id).state for job_id in jobs} == {"delivered"})
    finally:
        for sender in senders:
            sender.stop(5)
    assert len(receiver.calls) == 30


def test_what_a_dead_sender_had_in_hand_comes_due_again(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender
) -> None:
    sender.stop(5)
    job_id = end_job(db, tenant, receiver.url())
    # A sender takes it, the receiver answers 2xx, the sender dies before it records that.
    (taken,) = take_due(db, 10, lease_s=3600)
    assert take_due(db, 10, lease_s=3600) == []
    with db.begin() as connection:
        an_hour_passes = "UPDATE webhook_deliveries SET next_attempt_at = next_attempt_at - interval '1 hour'"
        connection.execute(text(an_hour_passes))
    successor = WebhookSender(db, _reaching(receiver))
    successor.start()
    try:
        (call,) = receiver.wait_calls(1)
    finally:
        successor.stop(5)
    assert call.headers["webhook-id"] == taken.id
    assert only(db, tenant, job_id).attempts == 2


def test_stopping_is_quick_and_gives_back_what_was_not_tried(
    db: Database, tenant: str, receiver: Receiver, open_settings: Settings
) -> None:
    sender = WebhookSender(db, open_settings)
    sender.start()
    jobs = [end_job(db, tenant, receiver.url(f"/slow/{index}")) for index in range(12)]
    receiver.wait_calls(4, "/slow")
    wait_for(lambda: sum(only(db, tenant, job_id).attempts for job_id in jobs) > 4)
    sender.stop(0.5)
    assert {only(db, tenant, job_id).last_status for job_id in jobs} == {None}, "it waited for no call"
    wait_for(lambda: sum(only(db, tenant, job_id).attempts for job_id in jobs) == 4, "the others are given back")
    assert len(take_due(db, 100, lease_s=1)) == 8
    receiver.released.set()
    sender.stop(5)


def test_a_delivery_whose_secret_is_locked_is_given_back_and_delays_nobody(
    db: Database, receiver: Receiver, open_settings: Settings
) -> None:
    sealing = Database(open_settings.database_url, pool_size=2, application_name="tests", seal=TurnedSeal("k"))
    owner = create_tenant(sealing, new_id("tenant"))
    locked = end_job(db, owner, receiver.url("/locked"))
    sender = WebhookSender(db, open_settings)
    sender.start()
    try:
        end_job(db, create_tenant(db, new_id("tenant")), receiver.url("/open"))
        receiver.wait_calls(1, "/open")
        wait_for(lambda: only(db, owner, locked).attempts == 0 and wait_of(db, only(db, owner, locked)) > 30)
    finally:
        sender.stop(5)
    assert [call.path for call in receiver.calls] == ["/open"]
    make_due(db)
    assert [len(due.secrets) for due in take_due(sealing, 10, 1)] == [1]
    sealing.close()


def test_a_delivery_that_cannot_be_signed_does_not_end_its_thread(
    db: Database, tenant: str, receiver: Receiver, open_settings: Settings
) -> None:
    with db.begin() as connection:
        connection.execute(text("UPDATE tenants SET webhook_secret = 'whsec_' WHERE id = :id"), {"id": tenant})
    bad = end_job(db, tenant, receiver.url("/bad"))
    sender = WebhookSender(db, open_settings.model_copy(update={"webhook_concurrency": 1}))
    sender.start()
    try:
        wait_for(lambda: only(db, tenant, bad).last_error == "could not be sent")
        end_job(db, create_tenant(db, new_id("tenant")), receiver.url("/good"))
        receiver.wait_calls(1, "/good")
    finally:
        sender.stop(5)


def test_postgres_going_away_does_not_end_the_sender(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender
) -> None:
    with db.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND application_name = current_setting('application_name')"
            )
        )
    job_id = end_job(db, tenant, receiver.url())
    wait_for(lambda: only(db, tenant, job_id).state == "delivered")


def _reaching(receiver: Receiver) -> Settings:
    return Settings(webhook_allow_http=True, webhook_allow_networks=("127.0.0.0/8",))


def test_the_schedule_is_that_of_the_specification() -> None:
    assert sum(RETRY_S) == 75 * 3600 + 35 * 60 + 5
    assert [retry_in_s(attempt, 0.5) for attempt in range(1, 11)] == [*RETRY_S, None]
    assert retry_in_s(1, 0.0) == pytest.approx(4.5)
    assert retry_in_s(1, 1.0) == pytest.approx(5.5)
    assert retry_in_s(1, 0.5, asked_s=60.0) == 60.0
    assert retry_in_s(2, 0.5, asked_s=60.0) == 300.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("99999999999999999999", 86_400.0),
        ("-5", None),
        ("soon", None),
        ("٣", None),
        ((NOW + timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT"), 90.0),
        ((NOW - timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT"), 0.0),
        ("Wed, 25 Nov 2026 12:00:30", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2027 00:00:00 +99999999999999", None),
    ],
)
def test_retry_after_in_every_form(value: str | None, expected: float | None) -> None:
    assert retry_after_s({} if value is None else {"retry-after": value}, NOW) == expected


def delivery(receiver_name: str, number: int = 0, tenant_id: str = "t1") -> Delivery:
    url = f"https://{receiver_name}/hook/{number}"
    return Delivery(
        id=f"evt_{receiver_name}{number}",
        tenant_id=tenant_id,
        endpoint_id=None,
        url=url,
        secrets=("whsec_MDEyMw==",),
        type="job.failed",
        subject_id="job_1",
        status=JobState.FAILED,
        created_at=NOW,
        attempt=1,
        num_tries=1,
    )


def test_a_signature_covers_id_time_and_body() -> None:
    headers = headers_of(delivery("a"), b'{"x":1}', NOW)
    assert headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    hook = standardwebhooks.Webhook("whsec_MDEyMw==")
    assert headers["webhook-signature"] == hook.sign("evt_a0", NOW, json.dumps({"x": 1}, separators=(",", ":")))
    for other in (headers_of(delivery("b"), b'{"x":1}', NOW), headers_of(delivery("a"), b"{}", NOW)):
        assert other["webhook-signature"] != headers["webhook-signature"]


def test_lanes_serve_receivers_in_turn_and_bound_each() -> None:
    lanes = ReceiverQueues(max_running=2, max_of_tenant=8, max_together=16)
    for number in range(5):
        lanes.add(delivery("a", number))
    lanes.add(delivery("b"))
    started = [lanes.next() for _ in range(5)]
    assert [each and each.id for each in started] == ["evt_a0", "evt_b0", "evt_a1", None, None]
    assert lanes.num_waiting == 3
    assert lanes.full() == {"t1 a"}
    lanes.done(delivery("a", 0))
    resumed = lanes.next()
    assert resumed is not None
    assert resumed.id == "evt_a2"
    assert [each.id for each in lanes.drop("t1 a")] == ["evt_a3", "evt_a4"]
    assert (lanes.num_waiting, lanes.full(), lanes.drop()) == (0, frozenset(), [])


def test_a_tenant_with_many_receivers_leaves_senders_to_others() -> None:
    lanes = ReceiverQueues(max_running=2, max_of_tenant=3, max_together=16)
    for number in range(5):
        lanes.add(delivery(f"host{number}"))
    assert lanes.full_tenants() == {"t1"}
    lanes.add(delivery("other", tenant_id="t2"))
    started = [each for _ in range(6) if (each := lanes.next())]
    assert [each.id for each in started] == ["evt_host00", "evt_other0", "evt_host10", "evt_host20"]
    assert (lanes.num_waiting, lanes.full_tenants()) == (2, frozenset())
    lanes.done(started[0])
    resumed = lanes.next()
    assert resumed is not None
    assert (resumed.id, lanes.next()) == ("evt_host30", None)


def test_tenants_are_served_in_turn_and_one_of_whom_nothing_runs_before_all() -> None:
    lanes = ReceiverQueues(max_running=4, max_of_tenant=4, max_together=4)
    for tenant in ("t1", "t2"):
        for number in range(4):
            lanes.add(delivery(f"host{number}", tenant_id=tenant))
    started = [each for _ in range(8) if (each := lanes.next())]
    assert [each.receiver for each in started] == ["t1 host0", "t2 host0", "t1 host1", "t2 host1"]
    for tenant in ("t3", "t4"):
        lanes.add(delivery("a", tenant_id=tenant))
        lanes.add(delivery("b", tenant_id=tenant))
    started += [each for _ in range(8) if (each := lanes.next())]
    assert [each.receiver for each in started[4:]] == ["t3 a", "t4 a"]
    for each in started[:4]:
        lanes.done(each)
    resumed = [each for _ in range(3) if (each := lanes.next())]
    assert [each.receiver for each in resumed] == ["t1 host2", "t2 host2"]


@pytest.mark.parametrize(
    ("status", "is_overload"), [(200, False), (429, True), (500, False), (502, True), (503, True), (504, True)]
)
def test_which_answers_say_that_a_receiver_is_overloaded(status: int, is_overload: bool) -> None:
    assert judge(Reply(status, {}), NOW).is_overload is is_overload


def test_nothing_secret_or_said_by_the_receiver_is_logged(
    db: Database, tenant: str, receiver: Receiver, sender: WebhookSender, capfd: Any
) -> None:
    receiver.answer = lambda _: Answer(500, body=b"STACKTRACE-OF-THE-TENANT")
    job_id = end_job(db, tenant, receiver.url("/hook?token=TOP-SECRET"))
    wait_for(lambda: only(db, tenant, job_id).last_status == 500)
    sender.stop(WAIT_S)
    assert not threads_named("webhooks")
    out, err = capfd.readouterr()
    assert "webhook.failed" in out + err
    for secret in ("STACKTRACE", "TOP-SECRET", get_webhook_secret(db, tenant).secret):
        assert secret not in out + err

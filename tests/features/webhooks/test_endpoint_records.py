"""The words of refusals, the audit log's rows, and what a delivery shows of itself."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.features.webhooks import endpoints
from headrace.features.webhooks.delivery_log import get_delivery, list_deliveries, redeliver
from headrace.features.webhooks.endpoints import (
    create_endpoint,
    delete_endpoint,
    enable_endpoint,
    get_endpoint,
    rotate_secret,
    update_endpoint,
)
from headrace.features.webhooks.outbox import AttemptResult, oldest_due_s, record_failed, take_due
from headrace.features.webhooks.redelivery import MissedEvents, recover, send_test
from headrace.features.webhooks.secrets import rotate_webhook_secret
from headrace.store.audit_log import hash_of, list_entries
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, Forbidden, InvalidRequest, NotFound
from headrace.store.jobs.jobs import request_cancel
from tests.refusals import Naming, refusal
from tests.store.making import AcceptOne, Query

URL = "https://Example.com/hook"
FAILED = AttemptResult(datetime(2026, 11, 26, tzinfo=UTC), 3, 410, "answered 410")


def told(db: Database, tenant: str, resource: str) -> list[tuple[str, str, dict[str, Any]]]:
    entries = reversed(list_entries(db, tenant))
    return [(entry.actor, entry.action, entry.detail) for entry in entries if entry.resource == resource]


def test_every_change_of_an_endpoint_is_on_record_with_both_states(db: Database, tenant: str) -> None:
    made = create_endpoint(db, tenant, url=URL, events=["job.failed"], actor="mia")
    update_endpoint(db, tenant, made.id, url=f"{URL}/2", actor="kai")
    update_endpoint(db, tenant, made.id, events=["job.failed", "batch.failed"], actor="kai")
    rotate_secret(db, tenant, made.id, overlap_s=60, actor="kai")
    send_test(db, tenant, made.id, actor="kai")
    (test,) = take_due(db, 1, 60)
    record_failed(db, test, FAILED, retry_in_s=None, patience_s=60)
    enable_endpoint(db, tenant, made.id, actor="kai")
    recover(db, tenant, made.id, MissedEvents(5, 9), kept_s=None, limit=10, actor="kai")
    delete_endpoint(db, tenant, made.id, actor="kai")
    assert told(db, tenant, made.id) == [
        ("mia", "webhook_endpoint.created", {"events": ["job.failed"]}),
        ("kai", "webhook_endpoint.updated", {"events": ["job.failed"]}),
        ("kai", "webhook_endpoint.updated", {"events": ["batch.failed", "job.failed"]}),
        ("kai", "webhook_endpoint.secret_rotated", {"overlap_s": 60}),
        ("kai", "webhook_endpoint.tested", {"delivery_id": test.id}),
        ("dispatcher", "webhook_endpoint.disabled", {"reason": "gone"}),
        ("kai", "webhook_endpoint.enabled", {"was": "gone"}),
        ("kai", "webhook_endpoint.recovered", {"since": 5, "until": 9, "num_queued": 0}),
        ("kai", "webhook_endpoint.deleted", {}),
    ]
    states = [
        {"url": URL, "events": ["job.failed"], "disabled": None},
        {"url": f"{URL}/2", "events": ["job.failed"], "disabled": None},
        {"url": f"{URL}/2", "events": ["batch.failed", "job.failed"], "disabled": None},
    ]
    changed = [one for one in reversed(list_entries(db, tenant)) if one.before_hash is not None]
    gone = {**states[2], "disabled": "gone"}
    pairs = [(states[0], states[1]), (states[1], states[2]), (gone, states[2])]
    assert [(one.before_hash, one.after_hash) for one in changed] == [
        (hash_of(before), hash_of(after)) for before, after in pairs
    ]
    assert list_deliveries(db, tenant) == [], "its deliveries go with it"


def test_refusals_say_what_to_do(db: Database, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = create_endpoint(db, tenant, url=URL, actor="mia")
    taken = (Conflict, Naming("URL"), "conflict", "url")
    assert refusal(lambda: create_endpoint(db, tenant, url=URL, actor="mia")) == taken
    other = create_endpoint(db, tenant, url=f"{URL}/2", events=["rollout.started"], actor="mia", is_operator=True)
    assert refusal(lambda: update_endpoint(db, tenant, made.id, url=other.url, actor="mia")) == taken
    foreign = (
        Forbidden,
        Naming("rollout.started", "registry:admin"),
        "insufficient_scope",
        "events",
    )
    for run in (
        lambda: create_endpoint(db, tenant, url=f"{URL}/3", events=["rollout.started", "job.failed"], actor="mia"),
        lambda: update_endpoint(db, tenant, other.id, url=f"{URL}/3", actor="mia"),
        lambda: update_endpoint(db, tenant, other.id, events=["job.failed"], actor="mia"),
    ):
        assert refusal(run) == foreign
    update_endpoint(db, tenant, other.id, events=["job.failed"], actor="mia", is_operator=True)
    monkeypatch.setattr(endpoints, "MAX_ENDPOINTS", 2)
    assert refusal(lambda: create_endpoint(db, tenant, url=f"{URL}/3", actor="mia")) == (
        Conflict,
        Naming("2 webhook endpoints"),
        "conflict",
        None,
    )
    assert refusal(lambda: get_endpoint(db, tenant, "we_none"))[:2] == (NotFound, Naming("we_none"))
    assert refusal(lambda: delete_endpoint(db, tenant, "we_none", actor="mia"))[1] == Naming("we_none")
    assert refusal(lambda: get_delivery(db, tenant, "evt_none"))[1] == Naming("evt_none")
    assert refusal(lambda: list_deliveries(db, tenant, after="evt_none")) == (
        InvalidRequest,
        Naming("evt_none", "`after`"),
        "invalid_value",
        "after",
    )


def test_a_delivery_shows_all_that_is_known_of_it(
    db: Database, tenant: str, accept_one: AcceptOne, query: Query
) -> None:
    assert oldest_due_s(db) == 0.0
    endpoint = create_endpoint(db, tenant, url=URL, actor="mia")
    job_id = accept_one(webhook={"url": f"{URL}/own"}, traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    request_cancel(db, tenant, job_id)
    query("UPDATE webhook_deliveries SET next_attempt_at = now() - interval '90 s' WHERE endpoint_id IS NULL")
    assert 90 <= oldest_due_s(db) < 600
    own, theirs = take_due(db, 10, 60)
    assert oldest_due_s(db) == 0.0, "none is due"
    assert (own.receiver, theirs.receiver) == (f"{tenant} example.com", f"{tenant} {endpoint.id}")
    assert (own.endpoint_id, own.subject_id, own.status, own.traceparent) == (
        None,
        job_id,
        "cancelled",
        "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )
    record_failed(db, theirs, FAILED, retry_in_s=None, patience_s=60)
    shown, tries = get_delivery(db, tenant, theirs.id)
    fields = asdict(shown)
    for name in ("next_attempt_at", "created_at"):
        assert isinstance(fields.pop(name), datetime)
    assert fields == {
        "id": theirs.id,
        "endpoint_id": endpoint.id,
        "url": URL,
        "job_id": job_id,
        "batch_id": None,
        "about_endpoint_id": None,
        "registry_id": None,
        "type": "job.cancelled",
        "state": "failed",
        "attempts": 1,
        "last_status": 410,
        "last_error": "answered 410",
        "delivered_at": None,
    }
    assert [asdict(one) for one in tries] == [
        {"attempt": 1, "at": FAILED.at, "duration_ms": 3, "status": 410, "error": "answered 410"}
    ]
    said = Naming(f"POST /v1/webhook_endpoints/{endpoint.id}/enable")
    disabled = (Conflict, said, "endpoint_disabled", None)
    assert refusal(lambda: redeliver(db, tenant, theirs.id, actor="mia")) == disabled
    assert refusal(lambda: send_test(db, tenant, endpoint.id, actor="mia")) == disabled
    assert redeliver(db, tenant, own.id, actor="mia").state == "pending", "a job's own URL has no endpoint"
    assert told(db, tenant, own.id) == [
        ("mia", "webhook_delivery.redelivered", {"type": "job.cancelled", "was": "pending"})
    ]


def test_events_are_missed_from_the_first_second_until_before_the_last(
    db: Database, tenant: str, accept_one: AcceptOne, query: Query
) -> None:
    for _ in range(3):
        request_cancel(db, tenant, accept_one())
    ids = [row["id"] for row in query("SELECT id FROM jobs ORDER BY id")]
    for second, job_id in enumerate(ids):
        query("UPDATE jobs SET completed_at = to_timestamp(:s) WHERE id = :id", s=1_700_000_000 + second, id=job_id)
    endpoint = create_endpoint(db, tenant, url=URL, actor="mia")
    missed = MissedEvents(1_700_000_001, 1_700_000_002)
    assert recover(db, tenant, endpoint.id, missed, kept_s=None, limit=10, actor="mia") == 1
    assert [row.job_id for row in list_deliveries(db, tenant)] == [ids[1]]
    # The same of rows that have failed.
    query("UPDATE webhook_deliveries SET state = 'failed'")
    for since, until, num in ((1_700_000_000, 1_700_000_001, 1), (1_700_000_001, 1_700_000_002, 1)):
        asked = MissedEvents(since, until)
        assert recover(db, tenant, endpoint.id, asked, kept_s=None, limit=10, actor="mia") == num


def test_events_whose_deliveries_may_be_deleted_soon_are_not_recovered(
    db: Database, tenant: str, accept_one: AcceptOne, query: Query
) -> None:
    for age_s in (86_370, 86_000):
        job_id = accept_one()
        request_cancel(db, tenant, job_id)
        query("UPDATE jobs SET completed_at = now() - make_interval(secs => :s) WHERE id = :id", s=age_s, id=job_id)
    endpoint = create_endpoint(db, tenant, url=URL, actor="mia")
    assert recover(db, tenant, endpoint.id, MissedEvents(0), kept_s=86_400, limit=9, actor="mia") == 1
    assert [row.job_id for row in list_deliveries(db, tenant)] == [job_id]


def test_a_rotation_of_the_tenants_secret_is_on_record(db: Database, tenant: str) -> None:
    until = rotate_webhook_secret(db, tenant, overlap_s=60, actor="mia").old_secret_until
    assert until is not None
    (entry, *_) = list_entries(db, tenant)
    assert (entry.action, entry.resource, entry.detail) == ("webhook_secret.rotated", tenant, {"overlap_s": 60})
    assert refusal(lambda: rotate_webhook_secret(db, tenant, overlap_s=1, actor="mia"))[1] == Naming(
        f"{until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC", "`overlap_s` 0"
    )

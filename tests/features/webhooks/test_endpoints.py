"""Endpoints and secrets as their owner makes, changes and removes them."""

import base64

import pytest
import standardwebhooks

from headrace.features.webhooks import endpoints
from headrace.features.webhooks.delivery_log import list_deliveries
from headrace.features.webhooks.endpoints import (
    create_endpoint,
    delete_endpoint,
    enable_endpoint,
    get_endpoint,
    list_endpoints,
    rotate_secret,
    update_endpoint,
)
from headrace.features.webhooks.outbox import take_due
from headrace.features.webhooks.secrets import get_webhook_secret, rotate_webhook_secret
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, InvalidRequest, NotFound
from headrace.store.jobs.jobs import request_cancel
from headrace.store.tenants.api_keys import create_tenant
from headrace.store.tenants.signing_secrets import new_secret
from tests.store.making import AcceptOne, Query

URL = "https://example.com/hook"


def test_an_endpoint_is_listed_with_its_secret(db: Database, tenant: str) -> None:
    made = create_endpoint(db, tenant, url=URL, events=["job.failed", "job.expired", "job.failed"], actor="mia")
    assert (made.url, made.events, made.disabled_at) == (URL, ("job.expired", "job.failed"), None)
    everything = create_endpoint(db, tenant, url=f"{URL}/2", actor="mia")
    assert everything.events == ("*",)
    assert everything.secret != made.secret
    assert list_endpoints(db, tenant) == [made, everything]
    assert get_endpoint(db, tenant, made.id) == made
    assert list_entries(db, tenant)[0].action == "webhook_endpoint.created"
    assert made.secret not in f"{list_entries(db, tenant)} {made}"


def test_what_cannot_be_is_refused(
    db: Database, tenant: str, other_tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for events in (["job.queued"], [], ["job.*"]):
        with pytest.raises(InvalidRequest) as refused:
            create_endpoint(db, tenant, url=URL, events=events, actor="mia")
        assert refused.value.param == "events"
    with pytest.raises(InvalidRequest, match=r"job\.\*: .*\*, batch\.cancelled, .*webhook_endpoint\.disabled"):
        create_endpoint(db, tenant, url=URL, events=["job.*"], actor="mia")
    create_endpoint(db, tenant, url=URL, actor="mia")
    with pytest.raises(Conflict, match="URL"):
        create_endpoint(db, tenant, url=URL, actor="mia")
    create_endpoint(db, other_tenant, url=URL, actor="mia")
    monkeypatch.setattr(endpoints, "MAX_ENDPOINTS", 1)
    with pytest.raises(Conflict, match="the most"):
        create_endpoint(db, tenant, url=f"{URL}/2", actor="mia")


def test_only_its_tenant_finds_it(db: Database, tenant: str, other_tenant: str) -> None:
    made, kept = (create_endpoint(db, tenant, url=url, actor="mia") for url in (URL, f"{URL}/2"))
    assert list_endpoints(db, other_tenant) == []
    for touch in (
        lambda: delete_endpoint(db, other_tenant, made.id, actor="eve"),
        lambda: get_endpoint(db, other_tenant, made.id),
        lambda: update_endpoint(db, other_tenant, made.id, url=f"{URL}/eve", actor="eve"),
        lambda: rotate_secret(db, other_tenant, made.id, actor="eve"),
        lambda: enable_endpoint(db, other_tenant, made.id, actor="eve"),
    ):
        with pytest.raises(NotFound):
            touch()
    assert get_endpoint(db, tenant, made.id) == made
    delete_endpoint(db, tenant, made.id, actor="mia")
    assert list_endpoints(db, tenant) == [kept]
    with pytest.raises(NotFound):
        delete_endpoint(db, tenant, made.id, actor="mia")


def test_a_change_leaves_what_it_does_not_name_and_reaches_what_is_under_way(
    db: Database, tenant: str, accept_one: AcceptOne
) -> None:
    made = create_endpoint(db, tenant, url=URL, events=["job.cancelled"], actor="mia")
    other = create_endpoint(db, tenant, url=f"{URL}/2", events=["batch.failed"], actor="mia")
    request_cancel(db, tenant, accept_one())
    moved = update_endpoint(db, tenant, made.id, url=f"{URL}/new", actor="mia")
    assert (moved.url, moved.events) == (f"{URL}/new", ("job.cancelled",))
    assert [(due.url, due.secrets) for due in take_due(db, 10, 60)] == [(f"{URL}/new", (made.secret,))]
    assert [row.url for row in list_deliveries(db, tenant)] == [f"{URL}/new"]
    changed = update_endpoint(db, tenant, made.id, events=["*"], actor="mia")
    assert (changed.url, changed.events) == (f"{URL}/new", ("*",))
    with pytest.raises(Conflict):
        update_endpoint(db, tenant, made.id, url=other.url, actor="mia")
    with pytest.raises(InvalidRequest):
        update_endpoint(db, tenant, made.id, events=["job.queued"], actor="mia")
    entries = [entry for entry in list_entries(db, tenant) if entry.action == "webhook_endpoint.updated"]
    assert len(entries) == 2
    assert all(entry.before_hash != entry.after_hash for entry in entries)


def test_both_secrets_sign_until_the_overlap_ends(
    db: Database, tenant: str, accept_one: AcceptOne, query: Query
) -> None:
    made = create_endpoint(db, tenant, url=URL, actor="mia")
    other = create_endpoint(db, tenant, url=f"{URL}/2", events=["batch.failed"], actor="mia")
    first = get_webhook_secret(db, tenant)
    rotated, mine = (
        rotate_secret(db, tenant, made.id, overlap_s=3600, actor="mia"),
        rotate_webhook_secret(db, tenant, overlap_s=3600, actor="mia"),
    )
    assert first.old_secret_until is None
    assert rotated.old_secret_until is not None
    assert mine.old_secret_until is not None
    assert get_webhook_secret(db, tenant) == mine
    request_cancel(db, tenant, accept_one(webhook={"url": f"{URL}/own"}))

    def secrets() -> dict[bool, tuple[str, ...]]:
        return {delivery.endpoint_id is None: delivery.secrets for delivery in take_due(db, 10, 0)}

    assert secrets() == {False: (rotated.secret, made.secret), True: (mine.secret, first.secret)}
    # A second rotation would end the promised overlap early; without an overlap that is intended.
    for rotate in (
        lambda: rotate_secret(db, tenant, made.id, overlap_s=1, actor="mia"),
        lambda: rotate_webhook_secret(db, tenant, overlap_s=1, actor="mia"),
    ):
        with pytest.raises(Conflict) as refused:
            rotate()
        assert refused.value.code == "rotation_in_progress"
    for table in ("webhook_endpoints", "webhook_secrets"):
        query(f"UPDATE {table} SET old_secret_until = now()")
    assert secrets() == {False: (rotated.secret,), True: (mine.secret,)}
    again = rotate_secret(db, tenant, made.id, overlap_s=3600, actor="mia")
    ours = rotate_webhook_secret(db, tenant, overlap_s=3600, actor="mia")
    assert secrets() == {False: (again.secret, rotated.secret), True: (ours.secret, mine.secret)}
    last = rotate_secret(db, tenant, made.id, overlap_s=0, actor="mia")
    final = rotate_webhook_secret(db, tenant, overlap_s=0, actor="mia")
    assert secrets() == {False: (last.secret,), True: (final.secret,)}
    update_endpoint(db, tenant, other.id, events=["*"], actor="mia")
    request_cancel(db, tenant, accept_one())
    assert {delivery.endpoint_id: delivery.secrets for delivery in take_due(db, 10, 0)}[other.id] == (other.secret,)
    told = [entry.action for entry in list_entries(db, tenant)]
    assert (told.count("webhook_endpoint.secret_rotated"), told.count("webhook_secret.rotated")) == (3, 3)
    assert not any(secret in str(list_entries(db, tenant)) for secret in (last.secret, final.secret))


def test_enabling_forgets_the_failures_and_is_said_once(db: Database, tenant: str, query: Query) -> None:
    made, other = (create_endpoint(db, tenant, url=url, actor="mia") for url in (URL, f"{URL}/2"))
    query(
        "UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = 'failing',"
        " failing_since = now(), last_failed_at = now()"
    )
    for _ in range(2):
        assert enable_endpoint(db, tenant, made.id, actor="mia") == made
    entries = [entry for entry in list_entries(db, tenant) if entry.action == "webhook_endpoint.enabled"]
    assert [entry.detail for entry in entries] == [{"was": "failing"}]
    assert get_endpoint(db, tenant, other.id).disabled_reason == "failing"


def test_a_secret_is_one_that_the_standards_library_takes() -> None:
    secret = new_secret()
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 48
    standardwebhooks.Webhook(secret)
    assert new_secret() != secret


def test_each_tenant_has_a_secret(db: Database, tenant: str, other_tenant: str) -> None:
    secrets = {get_webhook_secret(db, owner).secret for owner in (tenant, other_tenant)}
    assert len(secrets) == 2
    rotate_webhook_secret(db, tenant, overlap_s=0, actor="mia")
    assert get_webhook_secret(db, other_tenant).secret in secrets
    assert all(secret.startswith("whsec_") for secret in secrets)
    for touch in (
        lambda: get_webhook_secret(db, "ten_unknown"),
        lambda: rotate_webhook_secret(db, "ten_unknown", overlap_s=0, actor="eve"),
    ):
        with pytest.raises(NotFound):
            touch()
    assert get_webhook_secret(db, create_tenant(db, "third")).secret not in secrets


def test_a_change_forgets_no_failure(db: Database, tenant: str, query: Query) -> None:
    made = create_endpoint(db, tenant, url=URL, actor="mia")
    query("UPDATE webhook_endpoints SET failing_since = now(), disabled_at = now(), disabled_reason = 'failing'")
    before = get_endpoint(db, tenant, made.id)
    for changed in (
        update_endpoint(db, tenant, made.id, url=f"{URL}/2", actor="mia"),
        rotate_secret(db, tenant, made.id, overlap_s=0, actor="mia"),
    ):
        assert (changed.failing_since, changed.disabled_at, changed.disabled_reason) == (
            before.failing_since,
            before.disabled_at,
            "failing",
        )
        assert changed.created_at == made.created_at

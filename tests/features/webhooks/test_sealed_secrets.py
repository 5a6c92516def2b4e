"""Webhooks' secrets at rest: sealed where there is a key, each for its owner, and still signing after a rotation."""

from collections.abc import Iterator

import pytest

from headrace.features.webhooks.endpoints import create_endpoint, list_endpoints, rotate_secret
from headrace.features.webhooks.outbox import Delivery, take_due
from headrace.features.webhooks.secrets import get_webhook_secret, rotate_webhook_secret
from headrace.store.db.database import Database
from headrace.store.errors import CannotOpen
from headrace.store.jobs.jobs import request_cancel
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import create_tenant
from tests.sealing import TurnedSeal
from tests.store.making import AcceptOne, Query

URL = "https://example.com/hook"
TABLES = ("tenants", "webhook_secrets", "webhook_endpoints")


@pytest.fixture
def sealing(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url, pool_size=2, application_name="tests", seal=TurnedSeal("k"))
    yield database
    database.close()


@pytest.fixture
def tenant(sealing: Database) -> str:
    return create_tenant(sealing, "acme")


def due(db: Database) -> dict[str, Delivery]:
    """Due deliveries by URL; they stay due."""
    return {delivery.url: delivery for delivery in take_due(db, 10, 0)}


def test_both_secrets_of_a_rotation_are_sealed_and_sign(
    sealing: Database, tenant: str, accept_one: AcceptOne, query: Query
) -> None:
    first = get_webhook_secret(sealing, tenant).secret
    made = create_endpoint(sealing, tenant, url=URL, actor="mia")
    for _ in range(2):  # the second moves what the first has stored
        mine = rotate_webhook_secret(sealing, tenant, overlap_s=60, actor="mia").secret
        rotated = rotate_secret(sealing, tenant, made.id, overlap_s=60, actor="mia").secret
        query("UPDATE webhook_secrets SET old_secret_until = now()")
        query("UPDATE webhook_endpoints SET old_secret_until = now()")
    assert get_webhook_secret(sealing, tenant).secret == mine
    last = rotate_webhook_secret(sealing, tenant, overlap_s=60, actor="mia").secret
    theirs = rotate_secret(sealing, tenant, made.id, overlap_s=60, actor="mia").secret
    request_cancel(sealing, tenant, accept_one(webhook={"url": f"{URL}/own"}))
    assert {url: delivery.secrets for url, delivery in due(sealing).items()} == {
        URL: (theirs, rotated),
        f"{URL}/own": (last, mine),
    }
    assert first not in (mine, last)
    assert list_endpoints(sealing, tenant)[0].secret is None
    for table in TABLES:
        (row,) = query(f"SELECT * FROM {table}")
        assert "enc:k:" in str(row), table
        assert "whsec_" not in str(row), table


def test_a_secret_signs_for_its_owner_alone(
    sealing: Database, tenant: str, accept_one: AcceptOne, query: Query
) -> None:
    for path in ("a", "b"):
        create_endpoint(sealing, tenant, url=f"{URL}/{path}", actor="mia")
    request_cancel(sealing, tenant, accept_one())
    query(
        "UPDATE webhook_endpoints SET secret = (SELECT secret FROM webhook_endpoints WHERE url LIKE '%/a')"
        " WHERE url LIKE '%/b'"
    )
    found = due(sealing)
    assert (found[f"{URL}/a"].is_locked, found[f"{URL}/b"].is_locked, found[f"{URL}/b"].secrets) == (False, True, ())
    other = create_tenant(sealing, "globex")
    query("UPDATE tenants SET webhook_secret = (SELECT webhook_secret FROM tenants WHERE id = :id)", id=tenant)
    with pytest.raises(CannotOpen, match="moved"):
        get_webhook_secret(sealing, other)


def test_without_the_key_a_delivery_is_locked_and_the_others_are_not(
    sealing: Database, db: Database, tenant: str, accept_one: AcceptOne
) -> None:
    create_endpoint(sealing, tenant, url=URL, actor="mia")
    plain = create_tenant(db, "globex")
    create_endpoint(db, plain, url=f"{URL}/plain", actor="mia")
    for owner in (tenant, plain):
        request_cancel(db, owner, accept_one(tenant_id=owner))
    found = due(db)
    assert (found[URL].is_locked, found[f"{URL}/plain"].is_locked) == (True, False)
    assert len(found[f"{URL}/plain"].secrets) == 1
    with pytest.raises(CannotOpen, match="'k'"):
        get_webhook_secret(db, tenant)
    assert due(sealing)[URL].secrets

"""Webhooks from the command line, against running processes."""

import subprocess
from datetime import UTC, datetime

import orjson
import pytest
from sqlalchemy import text

from headrace.features.webhooks.endpoints import create_endpoint
from headrace.features.webhooks.outbox import AttemptResult, record_failed, take_due
from headrace.store.db.database import Database
from tests.cli.test_operating import Verb, operator

__all__ = ["operator"]


@pytest.mark.full
def test_webhooks_are_shown_tried_and_sent_again(operator: tuple[list[str], Verb], db: Database) -> None:
    (exhausted, _), verb = operator
    assert verb("webhooks", "endpoints").strip() == "no webhook endpoints"
    with db.begin() as connection:
        tenant = connection.execute(text("SELECT id FROM tenants")).scalar_one()
    endpoint = create_endpoint(db, tenant, url="https://hooks.example.com/x", events=["job.failed"], actor="tests")
    assert verb("webhooks", "recover", endpoint.id, "--since", "2026-01-01").startswith("2 events")
    (delivery,) = orjson.loads(verb("webhooks", "deliveries", "--job", exhausted, "--json"))
    (taken,) = (each for each in take_due(db, 10, 60) if each.id == delivery["id"])
    gone = AttemptResult(datetime.now(UTC), 5, 410, "answered 410")
    record_failed(db, taken, gone, retry_in_s=None, patience_s=60)
    assert "answered 410" in verb("webhooks", "delivery", delivery["id"])
    assert "gone, " in verb("webhooks", "endpoints")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        verb("webhooks", "test", endpoint.id)
    assert "disabled" in refused.value.stderr
    verb("webhooks", "enable", endpoint.id)
    test = verb("webhooks", "test", endpoint.id).strip()
    verb("webhooks", "redeliver", delivery["id"])
    listed = verb("webhooks", "deliveries", "--endpoint", endpoint.id, "--status", "pending")
    assert test in listed
    assert delivery["id"] in listed

"""The example that ends by a webhook."""

import pytest

from examples.nightly_batch.night import KINDS, MESSAGES, night
from headrace.features.webhooks.sender import WebhookSender
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from tests.e2e.test_embeddings import worker
from tests.e2e.test_examples import asked, key
from tests.processes import StartProcess

__all__ = ["key"]


@pytest.mark.full
def test_a_night_classifies_each_message_and_ends_by_a_webhook(
    settings: Settings, db: Database, key: str, start_process: StartProcess
) -> None:
    register(db, "writer", "fake", "auto", actor="tests")
    local = settings.model_copy(update={"webhook_allow_http": True, "webhook_allow_networks": ("127.0.0.0/8",)})
    sender = WebhookSender(db, local)
    sender.start()
    try:
        with asked(local, key) as (client, own), worker(start_process, settings, "writer"):
            found = night(client, own, MESSAGES, "writer")
            endpoints = own.request("GET", "/v1/webhook_endpoints")["data"]
    finally:
        sender.stop(5)
    assert len(found) == len(MESSAGES)
    assert set(found) <= set(KINDS)
    assert endpoints == []

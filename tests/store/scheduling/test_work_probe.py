"""What a dispatcher has to do is seen as long as there is any of it, and no longer."""

from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.jobs.jobs import request_cancel
from headrace.store.scheduling import queues, work_probe
from headrace.store.scheduling.work_probe import PendingWork
from headrace.store.tenants import quotas
from headrace.store.webhooks.outbox import take_due
from tests.store.making import AcceptOne

_SPENT = text("""
INSERT INTO spend_changes (tenant_id, api_key_id, month, cost) SELECT id, 'key', now(), 1 FROM tenants LIMIT 1
""")
NOTHING = PendingWork(jobs=False, changes=False, deliveries=False, sharers=False)


def test_an_empty_database_has_nothing(db: Database) -> None:
    assert work_probe.probe(db) == NOTHING


def test_a_queued_job_is_due_until_it_is_not_queued(db: Database, tenant: str, accept_one: AcceptOne) -> None:
    job_id = accept_one()
    assert work_probe.probe(db).jobs
    request_cancel(db, tenant, job_id)
    assert not work_probe.probe(db).jobs


def test_changes_are_due_until_all_kinds_are_counted(db: Database, accept_one: AcceptOne) -> None:
    accept_one()
    queues.fold(db)
    assert work_probe.probe(db).changes
    quotas.fold(db)
    assert not work_probe.probe(db).changes
    accept_one()
    quotas.fold(db)
    assert work_probe.probe(db).changes
    queues.fold(db)
    with db.begin() as connection:
        connection.execute(_SPENT)
    assert work_probe.probe(db).changes
    quotas.fold(db)
    assert not work_probe.probe(db).changes


def test_a_delivery_is_due_when_its_time_has_come(db: Database, tenant: str, accept_one: AcceptOne) -> None:
    request_cancel(db, tenant, accept_one(webhook={"url": "https://example.com/hook"}))
    assert work_probe.probe(db).deliveries
    assert take_due(db, 10, lease_s=60)
    assert not work_probe.probe(db).deliveries

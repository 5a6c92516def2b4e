"""What a dispatcher has to do is seen as long as there is any of it, and no longer."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.jobs.jobs import request_cancel
from headrace.store.scheduling import queues
from headrace.store.scheduling.work_probe import PendingWork, WorkProbe
from headrace.store.schema.job_states import UNSERVED_QUEUE
from headrace.store.tenants import quotas
from tests.store.making import AcceptOne

_SPENT = text("""
INSERT INTO spend_changes (tenant_id, api_key_id, month, cost) SELECT id, 'key', now(), 1 FROM tenants LIMIT 1
""")
NOTHING = PendingWork(jobs=False, changes=False, starts=False, of_features=frozenset())


def look(db: Database) -> PendingWork:
    return WorkProbe(db, {"never": "SELECT FALSE"}).look()


def test_an_empty_database_has_nothing(db: Database) -> None:
    assert look(db) == NOTHING


def test_a_queued_job_is_due_until_it_is_not_queued(db: Database, tenant: str, accept_one: AcceptOne) -> None:
    job_id = accept_one()
    assert look(db).jobs
    request_cancel(db, tenant, job_id)
    assert not look(db).jobs


@pytest.mark.parametrize("other", ["a@1", "z@1"])
def test_a_job_of_later_is_due_once_its_time_has_come(db: Database, accept_one: AcceptOne, other: str) -> None:
    now = datetime.now(UTC)
    accept_one(queue=UNSERVED_QUEUE, start_after=now + timedelta(hours=1))
    assert (look(db).jobs, look(db).starts) == (False, False)
    accept_one(queue=UNSERVED_QUEUE, start_after=now - timedelta(seconds=1))
    assert (look(db).jobs, look(db).starts) == (False, True)
    accept_one(queue=other)
    assert look(db).jobs


def test_changes_are_due_until_all_kinds_are_counted(db: Database, accept_one: AcceptOne) -> None:
    accept_one()
    queues.fold(db)
    assert look(db).changes
    quotas.fold(db)
    assert not look(db).changes
    accept_one()
    quotas.fold(db)
    assert look(db).changes
    queues.fold(db)
    with db.begin() as connection:
        connection.execute(_SPENT)
    assert look(db).changes
    quotas.fold(db)
    assert not look(db).changes


def test_a_feature_is_told_of_its_own_work(db: Database) -> None:
    due = WorkProbe(db, {"always": "SELECT TRUE", "never": "SELECT NULL"}).look()
    assert (due.has("always"), due.has("never")) == (True, False)
    assert PendingWork().has("never"), "where the probe failed any work may be due"

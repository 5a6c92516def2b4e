"""A tenant, jobs for it, and a look at the tables that no door of the store shows."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.ids import new_id
from headrace.store.jobs.jobs import Accepted, NewJob, accept
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.tenants.api_keys import create_tenant
from tests.store.making import QUEUE, AcceptOne, MakeJob, Query


@pytest.fixture
def tenant(db: Database) -> str:
    return create_tenant(db, "acme")


@pytest.fixture
def other_tenant(db: Database) -> str:
    return create_tenant(db, "globex")


@pytest.fixture
def make_job(tenant: str) -> MakeJob:
    template = NewJob(
        id="",
        tenant_id=tenant,
        task="generate",
        model="tiny",
        model_version=1,
        queue=QUEUE,
        service_class=ServiceClass.STANDARD,
        priority=5,
        payload={"input": {"prompt": "hello"}, "sampling": {"max_tokens": 4}},
        input_tokens=5,
        cost_tokens=13,
        metadata={},
        webhook=None,
        max_attempts=3,
        deadline_s=3600.0,
        idempotency=None,
        announce=True,
    )

    def make(**changes: Any) -> NewJob:
        return replace(template, **{"id": new_id("job"), **changes})

    return make


@pytest.fixture
def accept_one(db: Database, make_job: MakeJob) -> AcceptOne:
    """Accept one job with these changes and return its id."""

    def accept_one(**changes: Any) -> str:
        (outcome,) = accept(db, [make_job(**changes)])
        assert isinstance(outcome, Accepted)
        return outcome.job_id

    return accept_one


@pytest.fixture
def query(db: Database) -> Query:
    def run(statement: str, **values: object) -> list[dict[str, Any]]:
        with db.begin() as connection:
            result = connection.execute(text(statement), values)
            rows: list[Mapping[str, Any]] = list(result.mappings()) if result.returns_rows else []
        return [dict(row) for row in rows]

    return run

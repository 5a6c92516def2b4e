"""Reads from the event loop are combined, and each gets its own outcome."""

import asyncio

import pytest

from producer_api import reading
from producer_api.reading import JobReader
from store import jobs
from store.db import Database
from store.errors import NotFound, Unavailable
from store.ids import new_id
from store.jobs import Job, NewJob
from store.payloads import ServiceClass


def _stored(db: Database, tenant_id: str, count: int) -> list[str]:
    made = [
        NewJob(
            id=new_id("job"),
            tenant_id=tenant_id,
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
            webhook=None,
            max_attempts=1,
            deadline_s=60,
            idempotency=None,
            announce=False,
        )
        for _ in range(count)
    ]
    jobs.accept(db, made)
    return [job.id for job in made]


async def test_a_thousand_reads_cost_a_few_queries(db: Database, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = _stored(db, tenant, 50)
    sizes: list[int] = []
    get_many = jobs.get_many

    def counted(db: Database, tenant_id: str, asked: list[str]) -> list[Job]:
        sizes.append(len(asked))
        return get_many(db, tenant_id, asked)

    monkeypatch.setattr(reading.jobs, "get_many", counted)
    reader = JobReader(db)
    found = await asyncio.gather(*(reader.get(tenant, job_id) for job_id in ids * 20))
    assert [job.id for job in found] == ids * 20
    assert len(sizes) <= 2


async def test_tenants_are_read_apart(db: Database, tenant: str) -> None:
    (job_id,) = _stored(db, tenant, 1)
    reader = JobReader(db)
    own, foreign, unknown = await asyncio.gather(
        reader.get(tenant, job_id), reader.get("ten_0", job_id), reader.get(tenant, "job_0"), return_exceptions=True
    )
    assert isinstance(own, Job)
    assert isinstance(foreign, NotFound)
    assert isinstance(unknown, NotFound)


async def test_a_reader_who_leaves_disturbs_nobody(db: Database, tenant: str) -> None:
    first, second = _stored(db, tenant, 2)
    reader = JobReader(db)
    leaving = asyncio.create_task(reader.get(tenant, first))
    staying = asyncio.create_task(reader.get(tenant, second))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).id == second
    assert (await reader.get(tenant, first)).id == first


async def test_a_database_that_is_away_is_said_to_everyone() -> None:
    db = Database("postgresql://app@127.0.0.1:1/x", application_name="tests")
    reader = JobReader(db)
    outcomes = await asyncio.gather(*(reader.get("ten_0", f"job_{n}") for n in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
    assert len({id(outcome) for outcome in outcomes}) == 3
    db.close()

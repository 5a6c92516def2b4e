"""Reads from the event loop are combined, and each gets its own outcome."""

import asyncio
from collections.abc import Iterator

import pytest

from headrace.producer_api.reads import job_loader
from headrace.producer_api.reads.job_loader import JobLoader
from headrace.store.db.database import Database
from headrace.store.errors import CannotOpen, NotFound, Unavailable
from headrace.store.ids import new_id
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import Job, NewJob, TenantAndId
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.roles import as_api
from tests.sealing import TurnedSeal


@pytest.fixture
def api_db(settings: Settings) -> Iterator[Database]:
    """The database as the API's role sees it."""
    database = Database(as_api(settings).database_url, application_name="tests")
    yield database
    database.close()


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
            payload={"sampling": {}},
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


@pytest.fixture
def waves(monkeypatch: pytest.MonkeyPatch) -> list[list[TenantAndId]]:
    """What each query asked for."""
    asked: list[list[TenantAndId]] = []
    get_each = jobs.get_each

    def noted(db: Database, pairs: list[TenantAndId]) -> object:
        asked.append(pairs)
        return get_each(db, pairs)

    monkeypatch.setattr(jobs, "get_each", noted)
    return asked


@pytest.mark.full
async def test_reads_of_many_tenants_cost_a_few_queries(
    db: Database, api_db: Database, waves: list[list[TenantAndId]]
) -> None:
    pairs = [
        (tenant_id, job_id)
        for tenant_id in (api_keys.create_tenant(db, f"tenant {number}") for number in range(40))
        for job_id in _stored(db, tenant_id, 2)
    ] * 5
    reader = JobLoader(api_db)
    found = await asyncio.gather(*(reader.get(*pair) for pair in pairs))
    assert [(job.tenant_id, job.id) for job in found] == pairs
    assert len(waves) <= 2


async def test_a_tenant_with_many_reads_delays_no_other(
    db: Database, tenant: str, waves: list[list[TenantAndId]]
) -> None:
    other = api_keys.create_tenant(db, "globex")
    reader = JobLoader(db)
    many = [reader.get(tenant, f"job_{number}") for number in range(2 * job_loader.MOST)]
    await asyncio.gather(*many, reader.get(other, "job_0"), return_exceptions=True)
    assert [len(wave) for wave in waves] == [job_loader.MOST, job_loader.MOST, 1]
    assert (other, "job_0") in waves[0]


async def test_tenants_that_share_a_query_read_their_own_alone(db: Database, api_db: Database, tenant: str) -> None:
    other = api_keys.create_tenant(db, "globex")
    ((mine,), (theirs,)) = _stored(db, tenant, 1), _stored(db, other, 1)
    reader = JobLoader(api_db)
    asked = [(tenant, mine), (tenant, theirs), (other, mine), (other, theirs), (tenant, "job_0"), (tenant, "job_\0")]
    found = await asyncio.gather(*(reader.get(*pair) for pair in asked), return_exceptions=True)
    assert [each.id if isinstance(each, Job) else type(each) for each in found] == [
        mine,
        NotFound,
        NotFound,
        theirs,
        NotFound,
        NotFound,
    ]


async def test_a_job_that_does_not_open_fails_alone(settings: Settings, db: Database, tenant: str) -> None:
    (plain,) = _stored(db, tenant, 1)
    sealing = Database(settings.database_url, application_name="tests", seal=TurnedSeal("k1"))
    (sealed,) = _stored(sealing, tenant, 1)
    sealing.close()
    reader = JobLoader(db)
    found = await asyncio.gather(reader.get(tenant, sealed), reader.get(tenant, plain), return_exceptions=True)
    assert isinstance(found[0], CannotOpen)
    assert isinstance(found[1], Job)


async def test_a_reader_who_leaves_disturbs_nobody(db: Database, tenant: str) -> None:
    first, second = _stored(db, tenant, 2)
    reader = JobLoader(db)
    leaving = asyncio.create_task(reader.get(tenant, first))
    staying = asyncio.create_task(reader.get(tenant, second))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).id == second
    assert (await reader.get(tenant, first)).id == first


async def test_a_database_that_is_away_is_said_to_everyone() -> None:
    db = Database("postgresql://app@127.0.0.1:1/x", application_name="tests")
    reader = JobLoader(db)
    outcomes = await asyncio.gather(*(reader.get("ten_0", f"job_{n}") for n in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
    assert len({id(outcome) for outcome in outcomes}) == 3
    db.close()

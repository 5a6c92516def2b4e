"""Tables become partitions while a release accepts, claims and ends jobs, and none of these is lost."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import make_url, text

from headrace.migrations.schema import current, head, upgrade
from headrace.store.db.database import Database
from headrace.store.ids import new_id
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.jobs.jobs import NewJob, accept, timeline
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import create_tenant
from tests.processes import WAIT_S, wait_for

BEFORE = "0106"
"""The last revision without partitions."""
QUEUE = "tiny@1"
USAGE = {"input_tokens": 5, "output_tokens": 3}


@pytest.fixture
def url(db: Database, settings: Settings) -> Iterator[str]:
    """A database of this test's own at the last revision without partitions."""
    name = new_id("test")
    with db.autocommit() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    address = make_url(settings.database_url).set(database=name).render_as_string(hide_password=False)
    with closing(Database(address, pool_size=3, application_name="tests")) as first:
        upgrade(first, BEFORE)
    try:
        yield address
    finally:
        with db.autocommit() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def new_job(tenant_id: str) -> NewJob:
    about = {"task": "generate", "model": "tiny", "model_version": 1, "queue": QUEUE, "priority": 5, "max_attempts": 3}
    return NewJob(
        id=new_id("job"),
        tenant_id=tenant_id,
        service_class=ServiceClass.STANDARD,
        payload={"input": {"prompt": "hello"}},
        input_tokens=5,
        cost_tokens=13,
        metadata={},
        webhook=None,
        deadline_s=3600.0,
        idempotency=None,
        announce=True,
        **about,  # type: ignore[arg-type]  # each has its type
    )


def run_jobs(db: Database, tenant: str, ended: list[str], stopping: threading.Event) -> None:
    while not stopping.is_set():
        job = new_job(tenant)
        accept(db, [job])
        (held,) = claim(db, "worker", QUEUE, [job.id], 60).values()
        assert timeline(db, tenant, job.id)
        assert finish(db, [Finish(job.id, held.epoch, JobState.SUCCEEDED, {"text": "x"}, None, USAGE)]) == {job.id}
        ended.append(job.id)


def test_jobs_go_on_while_their_tables_become_partitions(url: str) -> None:
    ended: list[list[str]] = [[], [], []]
    failed: list[BaseException] = []
    stopping = threading.Event()

    def load(mine: list[str]) -> None:
        try:
            run_jobs(db, tenant, mine, stopping)
        except BaseException as error:
            failed.append(error)
            raise

    with closing(Database(url, pool_size=5, application_name="tests")) as db:
        tenant = create_tenant(db, "acme")
        threads = [threading.Thread(target=load, args=(mine,)) for mine in ended]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: failed or all(len(mine) > 5 for mine in ended), "jobs run")
            assert upgrade(db) == BEFORE
            num = [len(mine) for mine in ended]
            wait_for(lambda: failed or all(len(mine) > n + 5 for mine, n in zip(ended, num, strict=True)), "they go on")
        finally:
            stopping.set()
            for thread in threads:
                thread.join(WAIT_S)
        assert failed == []
        with db.begin() as connection:
            assert current(connection) == head()
            billed = set(connection.execute(text("SELECT job_id FROM usage_ledger")).scalars())
            ends = set(connection.execute(text("SELECT job_id FROM job_terminal")).scalars())
        every = {job_id for mine in ended for job_id in mine}
        assert billed == ends == every
        for job_id in every:
            assert [event.kind for event in timeline(db, tenant, job_id)] == ["queued", "started", "succeeded"]

"""Lists and the console read a streaming replica; everything else, and with its death everything, the primary."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from headrace.migrations.roles import let_in
from headrace.migrations.schema import upgrade
from headrace.store.db.database import Database
from headrace.store.db.roles import API, ROLES
from tests.conftest import Services
from tests.failover.postgres_pair import PORT, PostgresServer
from tests.folders import reachable_folder
from tests.processes import wait_for
from tests.reliability.rig import Stack, with_redis_db
from tests.roles import ROLE_PASSWORD

MODEL = "replicated"
LISTS = ("batches", "files", "vector_stores", "pipelines", "prompts", "dead_letters", "organization/audit_logs")


@pytest.fixture
def servers() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    with reachable_folder() as folder:
        primary, replica = (PostgresServer(folder / name, f"127.0.5.{name}") for name in "12")
        try:
            primary.init()
            primary.start()
            for _ in replica.copying(primary):
                os.sched_yield()
            yield primary, replica
        finally:
            replica.kill()
            primary.kill()


def test_lists_are_late_and_nothing_else(
    servers: tuple[PostgresServer, PostgresServer], services: Services, folder: Path
) -> None:
    primary, replica = servers
    url = f"postgresql+psycopg://app@/postgres?host={primary.folder}"
    with closing(Database(url, pool_size=2, application_name="tests")) as db:
        upgrade(db)
        let_in(db, dict.fromkeys(ROLES, ROLE_PASSWORD))
    hosts = f"{replica.host}:{PORT},{primary.host}:{PORT}"
    both = f"postgresql://{API}@{hosts}/postgres?target_session_attrs=prefer-standby"
    with closing(Stack(url, with_redis_db(services.redis_url, 15), folder)) as stack:
        stack.register(MODEL)
        _, client = stack.api(lists_database_url=both)

        def listed() -> set[str]:
            return {job["id"] for job in client.insist("GET", "/v1/jobs").json()["data"]}

        early = client.submit(MODEL, "replayed", 4)
        wait_for(lambda: early in listed(), "the replica has it")
        for name in LISTS:
            assert client.insist("GET", f"/v1/{name}").status_code == 200, name
        replica.ask("SELECT pg_wal_replay_pause()")
        late = client.submit(MODEL, "not replayed", 4)
        assert client.insist("GET", f"/v1/jobs/{late}").json()["status"] == "queued"
        assert listed() == {early}
        replica.kill()
        wait_for(lambda: listed() == {early, late}, "lists read the primary")
        client.close()

"""The processes behind a real PgBouncer in transaction mode, with fewer connections than they have pools."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.migrations.schema import upgrade
from headrace.store.db.database import Database
from headrace.store.errors import SettingsError
from tests.pgbouncer import running_pgbouncer
from tests.reliability.jobs import answer, check_ended_once
from tests.reliability.rig import Databases, Stack
from tests.reliability.test_batches import read, run_batch

MODEL = "batched"


@pytest.fixture
def pooled(databases: Databases, folder: Path) -> Iterator[Stack]:
    with databases.stack(folder) as stack, running_pgbouncer(stack.folder, stack.database_url, pool_size=4) as url:
        stack.processes_url = url
        yield stack


def test_jobs_a_batch_and_a_change_of_leaders(pooled: Stack) -> None:
    pooled.register(MODEL)
    api, client = pooled.api()
    pooled.worker(MODEL)
    leading = pooled.dispatcher().wait_ready()
    standby = pooled.dispatcher()
    num_lines = 100
    ended = run_batch(client, num_lines)
    assert ended["request_counts"] == {"total": num_lines, "completed": num_lines, "failed": 0}
    assert len(read(client, ended["output_file_id"])) == num_lines
    assert not standby.events("dispatcher.leading"), "one leads"
    leading.stop()
    standby.wait_ready()
    prompts = [f"behind a pooler {number}" for number in range(20)]
    made = [
        client.insist("POST", "/v1/jobs", json={"model": MODEL, "input": {"prompt": one}, "sampling": SAMPLING}).json()
        for one in prompts
    ]
    jobs = {job.id: job for job in pooled.wait_ended([one["id"] for one in made])}
    assert [jobs[one["id"]].output["text"] for one in made] == [answer(one, 12) for one in prompts]
    check_ended_once(pooled, list(jobs))
    listed = client.insist("GET", "/v1/jobs?limit=100").json()
    assert {one["id"] for one in listed["data"]} >= set(jobs)
    bad = [
        line for kept in (api, leading, standby) for line in kept.log().splitlines() if "database_unavailable" in line
    ]
    assert not bad
    client.close()


SAMPLING = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}


def test_a_migration_wants_postgres_itself(pooled: Stack) -> None:
    db = Database(pooled.processes_url, pool_size=2, application_name="tests")
    with pytest.raises(SettingsError, match="pooler"):
        upgrade(db)
    db.close()

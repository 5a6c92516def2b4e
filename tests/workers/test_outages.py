"""A real worker process while its servers die, on a Postgres and a Redis of these tests alone."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from headrace.cli.local.postgres import LocalPostgres
from headrace.cli.local.valkey import LocalValkey
from headrace.migrations.roles import let_in
from headrace.migrations.schema import upgrade
from headrace.store.db.database import Database
from headrace.store.db.roles import ROLES
from headrace.store.errors import Unavailable
from headrace.store.jobs import jobs
from headrace.store.redis.connection import connect
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from tests.conftest import empty_tables
from tests.folders import reachable_folder
from tests.processes import Process, none_left, wait_for
from tests.roles import ROLE_PASSWORD

from .conftest import Bench, Duties, StartWorker


@dataclass(frozen=True)
class Servers:
    """Servers that may be stopped."""

    postgres: LocalPostgres
    valkey: LocalValkey


@contextmanager
def away(*servers: LocalPostgres | LocalValkey) -> Iterator[None]:
    """Stop the servers for a while."""
    for server in servers:
        server.stop()
    yield
    for server in servers:
        server.start()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with reachable_folder() as folder:
        yield from _running_servers(folder)


def _running_servers(folder: Path) -> Iterator[Servers]:
    servers = Servers(
        LocalPostgres(folder / "pg", folder / "postgres.log"), LocalValkey(folder / "kv", folder / "valkey.log")
    )
    servers.postgres.start()
    servers.valkey.start()
    db = Database(servers.postgres.url, application_name="tests")
    upgrade(db)
    let_in(db, dict.fromkeys(ROLES, ROLE_PASSWORD))
    db.close()
    yield servers
    servers.valkey.stop()
    servers.postgres.stop()


@pytest.fixture(autouse=True)
def no_process_is_left(servers: Servers) -> Iterator[None]:
    """As everywhere, but a test may stop the module's servers and start them again."""
    with none_left(lambda: {server.child.pid for server in (servers.postgres, servers.valkey) if server.child}):
        yield


@pytest.fixture
def settings(servers: Servers, tmp_path: Path) -> Settings:
    engine = create_engine(servers.postgres.url)
    with engine.begin() as connection:
        empty_tables(connection)
    engine.dispose()
    with connect(servers.valkey.url) as client:
        client.flushdb()
    return Settings(
        database_url=servers.postgres.url,
        redis_url=servers.valkey.url,
        home=tmp_path,
        lease_s=3,
        reannounce_s=1,
        drain_s=1,
        fake_step_ms=20,
    )


def accept(bench: Bench, count: int, **changes: object) -> list[str]:
    """Store jobs without hints."""
    new = [bench.new_job(**changes) for _ in range(count)]
    jobs.accept(bench.db, new)
    return [job.id for job in new]


def can_ring(bench: Bench) -> bool:
    """Return True if Redis is back, also for clients that back off after a failure."""
    try:
        bench.publisher.depth(bench.queue)
    except Unavailable:
        return False
    return True


@pytest.mark.full
def test_jobs_finish_while_redis_is_dead_also_those_that_come_then(
    servers: Servers, bench: Bench, duties: Duties, start_worker: StartWorker
) -> None:
    worker = start_worker()
    running = bench.submit(8, sampling={"max_tokens": 400})
    wait_for(lambda: bench.states(running)[JobState.RUNNING] == 8, "all run")
    with away(servers.valkey):
        ended = bench.wait_ended(running)
        assert {(job.state, job.attempt) for job in ended} == {(JobState.SUCCEEDED, 1)}
        wait_for(lambda: worker.events("frames_dropped"), "it says so")
        came_meanwhile = accept(bench, 20)
        assert {job.state for job in bench.wait_ended(came_meanwhile)} == {JobState.SUCCEEDED}
        assert worker.events("redis_is_silent")
    wait_for(lambda: can_ring(bench), "a hint can be sent again")
    ids = bench.submit(50)
    assert {job.state for job in bench.wait_ended(ids)} == {JobState.SUCCEEDED}
    assert worker.exit_code is None


@pytest.mark.full
def test_a_restart_of_both_servers_loses_nothing(
    servers: Servers, bench: Bench, duties: Duties, start_worker: StartWorker
) -> None:
    worker = start_worker()
    ids = bench.submit(100, sampling={"max_tokens": 30})
    wait_for(lambda: bench.states(ids)[JobState.SUCCEEDED] >= 10, "some are done")
    with away(servers.postgres, servers.valkey):
        wait_for(lambda: worker.events("leases_not_renewed"), "the worker noticed")
    ended = bench.wait_ended(ids)
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    assert worker.exit_code is None


@pytest.mark.full
def test_a_drain_without_redis_hands_back_in_time(servers: Servers, bench: Bench, start_worker: StartWorker) -> None:
    worker, ids = running_worker(bench, start_worker)
    with away(servers.valkey):
        drain(worker)
        assert bench.states(ids) == {JobState.QUEUED: 3}


@pytest.mark.full
def test_a_drain_without_postgres_ends_in_time_and_leaves_the_leases(
    servers: Servers, bench: Bench, start_worker: StartWorker
) -> None:
    worker, ids = running_worker(bench, start_worker)
    with away(servers.postgres):
        drain(worker)
    # The last of them on a machine on which the attempts to hand back take longer than the grace.
    assert worker.events("outcome_lost") + worker.events("hand_back_failed") + worker.events("drain_forced")
    assert bench.states(ids) == {JobState.RUNNING: 3}


@pytest.mark.full
def test_a_drain_hands_back_what_was_claimed_without_a_message(bench: Bench, start_worker: StartWorker) -> None:
    worker = start_worker()
    ids = accept(bench, 3, sampling={"max_tokens": 1900})
    wait_for(lambda: bench.states(ids)[JobState.RUNNING] == 3, "all run")
    drain(worker)
    assert bench.states(ids) == {JobState.QUEUED: 3}
    assert {bench.job(job_id).attempt for job_id in ids} == {0}


@pytest.mark.full
def test_a_drain_gives_time_to_what_was_claimed_without_a_message(bench: Bench, start_worker: StartWorker) -> None:
    worker = start_worker(drain_s=600)
    ids = accept(bench, 3, sampling={"max_tokens": 300})
    wait_for(lambda: bench.states(ids)[JobState.RUNNING] == 3, "all run")
    drain(worker)
    assert bench.states(ids) == {JobState.SUCCEEDED: 3}


def running_worker(bench: Bench, start_worker: StartWorker) -> tuple[Process, list[str]]:
    """A worker with three long jobs in its engine."""
    worker = start_worker()
    ids = bench.submit(3, sampling={"max_tokens": 1900})
    wait_for(lambda: bench.states(ids)[JobState.RUNNING] == 3, "all run")
    return worker, ids


def drain(worker: Process) -> None:
    """Send SIGTERM and wait until the worker has ended."""
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.full
def test_every_stop_signal_is_a_drain(bench: Bench, start_worker: StartWorker, number: int) -> None:
    worker, ids = running_worker(bench, start_worker)
    worker.signal(number)
    assert worker.wait_exit() == 0
    assert bench.states(ids) == {JobState.QUEUED: 3}

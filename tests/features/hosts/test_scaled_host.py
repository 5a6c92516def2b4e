"""A host of autoscaled queues as a process: it follows decisions, loses no generation, and replaces dead workers."""

import os
import signal

import pytest
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.hosts.host_reports import HostPlace, PlaceState, read_hosts
from headrace.store.registry import models
from headrace.store.scheduling.autoscale import Decision, ScaleHistory
from headrace.store.scheduling.scale_decisions import write_decisions
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from tests.processes import StartProcess, python, wait_for
from tests.workers.conftest import Bench, worker_environment

LONG_S = 200.0


def decided(db: Database, queue: str, replicas: int) -> None:
    """Store a decision that does not grow old."""
    write_decisions(db, {queue: Decision(replicas, "the test says so", ScaleHistory())})
    with db.begin() as connection:
        connection.execute(text("UPDATE queue_scaling SET decided_at = now() + interval '1 hour'"))


def places(db: Database) -> list[HostPlace]:
    return [place for host in read_hosts(db) for place in host.places]


def serving(db: Database) -> set[int]:
    return {place.pid for place in places(db) if place.state is PlaceState.SERVING and place.pid is not None}


@pytest.mark.timeout(600)
@pytest.mark.full
def test_workers_follow_the_decision_and_a_drained_one_ends_its_jobs(
    db: Database, settings: Settings, start_process: StartProcess
) -> None:
    given = {"runner": "fake", "source": "", "digest": "0" * 64, "dtype": "none", "context_window": 8192}
    bench = Bench(db, settings, models.register_version(db, model="one", actor="tests", **given))
    # A drain of a worker that is not scaled would hand the jobs back after a tenth of a second.
    changes = {"drain_s": 0.1, "autoscale_drain_s": LONG_S, "fake_step_ms": 20, "lease_s": 60}
    argv = python("-m", "headrace.features.hosts", "--autoscale", "--name", "h1")
    host = start_process(argv, worker_environment(settings, changes))
    decided(db, bench.queue, 2)
    wait_for(lambda: len(serving(db)) == 2, lambda: host.log(), LONG_S)
    killed = min(serving(db))
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: len(serving(db) - {killed}) == 2, lambda: host.log(), LONG_S)
    (report,) = read_hosts(db)
    assert [event.kind for event in report.events if event.kind in {"failed", "draining"}] == ["failed"]

    jobs = bench.submit(4, sampling={"max_tokens": 600})
    wait_for(lambda: bench.states(jobs)[JobState.RUNNING] == 4, lambda: host.log(), LONG_S)
    decided(db, bench.queue, 0)
    wait_for(lambda: bool(places(db)) and not serving(db), lambda: host.log(), LONG_S)
    ended = bench.wait_ended(jobs, LONG_S)
    assert {(job.state, job.attempt) for job in ended} == {(JobState.SUCCEEDED, 1)}
    wait_for(lambda: not places(db), "the workers have left")
    (report,) = read_hosts(db)
    assert [(one.queue, one.in_s is not None) for one in report.outlooks] == [(bench.queue, True)]
    assert any("the test says so" in event.reason for event in report.events)
    host.signal(signal.SIGTERM)
    assert host.wait_exit() == 0
    bench.close()

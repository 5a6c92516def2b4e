"""P6: one job kills whatever worker runs it; its neighbours and the next workers must not pay for it more than once."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from headrace.models.fakes.faults import EXIT_CODE
from headrace.store.child_process import Child, Command
from headrace.store.jobs import dead_letters, jobs
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.supervisor import Program, Supervisor
from headrace.store.tenants import api_keys
from headrace.workers.dispatcher.dispatcher import Dispatcher
from tests.figures import Report, report
from tests.processes import ROOT, WAIT_S, wait_for
from tests.producer_api.serving import serving

from .conftest import Bench, worker_environment

__all__ = ["report"]

MARK = "the apple with the red cheek"
FAULTY = {"environment": "test", "model_faults": f"exit:{MARK}"}


@pytest.mark.full  # `make chaos` has a poison job among others too
def test_p6_one_poison_job_and_its_31_neighbours(
    bench: Bench, settings: Settings, tmp_path: Path, report: Report
) -> None:
    changes = {**FAULTY, "lease_s": 60, "fake_step_ms": 20}
    innocents = bench.submit(31, sampling={"max_tokens": 300})
    # Also the dispatcher's: after a pause of some of its lease it would blame nobody for a crash.
    patient = settings.model_copy(update={"lease_s": 60})
    with dispatching(patient), supervised_worker(settings, tmp_path / "worker.log", changes) as said:
        wait_for(lambda: bench.states(innocents)[JobState.RUNNING] == 31, "the innocents run together")
        # Its priority is no reason to run it before them.
        (poison,) = bench.submit(prompt=f"eat {MARK}", max_attempts=9, priority=0)
        wait_for(lambda: end_leases_of_the_dead(bench) or bench.job(poison).state.is_terminal, "the poison fails", 150)
        ended = bench.wait_ended([*innocents, poison], timeout_s=150)
    crashes = sum(f"(exit {EXIT_CODE})" in line for line in said)
    report(
        "P6",
        seed=0,
        innocents=dict(Counter(job.state for job in ended[:31])),
        attempts_of_innocents=dict(Counter(job.attempt for job in ended[:31])),
        poison=f"{ended[31].state} {(ended[31].error or {}).get('code')}",
        crashes=crashes,
        neighbours_in_its_solo_attempts=len(attempts_beside(bench, poison)),
    )
    assert Counter(job.state for job in ended[:31]) == {JobState.SUCCEEDED: 31}
    assert {job.attempt for job in ended[:31]} == {2}, "each was lost once, with the others"
    assert ended[31].error is not None
    assert (ended[31].state, ended[31].error["code"], ended[31].attempt) == (JobState.FAILED, "poison", 3)
    assert crashes == 3
    (letter,) = dead_letters.list_dead_letters(bench.db, bench.tenant_id)
    assert (letter.job_id, letter.code, letter.crashes) == (poison, "poison", 3)
    assert bench.query("SELECT max(crashes) AS most FROM jobs WHERE id <> :poison", poison=poison)[0].most == 1
    assert attempts_beside(bench, poison) == [], "nobody else was running in its second and third attempt"
    began = bench.query("SELECT job_id FROM attempts WHERE epoch = 2 ORDER BY started_at")
    assert began[-1].job_id == poison, "the innocents run again before it ends the next worker"


def end_leases_of_the_dead(bench: Bench) -> None:
    """Let the leases of workers that are gone end now, and not some time later."""
    for (owner,) in bench.query("SELECT DISTINCT owner FROM jobs WHERE state = 'running'"):
        if not Path(f"/proc/{owner.split(':')[1]}").exists():
            end = "UPDATE jobs SET lease_expires_at = now() WHERE state = 'running' AND owner = :owner RETURNING id"
            bench.query(end, owner=owner)


def attempts_beside(bench: Bench, poison: str, *, epoch: int = 2) -> list[str]:
    """Return the jobs that ran in the same worker during the poison's attempts from this epoch on."""
    overlaps = bench.query(
        """
        SELECT other.job_id FROM attempts AS alone JOIN attempts AS other
        ON other.job_id <> alone.job_id AND other.started_at < alone.ended_at AND other.ended_at > alone.started_at
            AND other.worker = alone.worker
        WHERE alone.job_id = :poison AND alone.epoch >= :epoch
        """,
        poison=poison,
        epoch=epoch,
    )
    return [row.job_id for row in overlaps]


@pytest.mark.full
def test_a_replay_after_the_cure_succeeds(bench: Bench, settings: Settings, tmp_path: Path) -> None:
    (poison,) = bench.submit(prompt=f"eat {MARK}", max_attempts=1)
    with dispatching(settings):
        with supervised_worker(settings, tmp_path / "ill.log", {**FAULTY, "lease_s": 1}):
            (dead,) = bench.wait_ended([poison])
        assert dead.state is JobState.FAILED
        key = api_keys.create_key(bench.db, bench.tenant_id, "operator", ["jobs:write"], actor="tests")
        with serving(settings) as server, supervised_worker(settings, tmp_path / "well.log", {"lease_s": 60}):
            path = f"{server.url}/v1/dead_letters/{poison}/replay"
            answer = httpx2.post(path, headers={"Authorization": f"Bearer {key}"}, timeout=60)
            (job,) = bench.wait_ended([answer.json()["job_id"]])
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert jobs.get(bench.db, bench.tenant_id, poison).state is JobState.FAILED


@contextmanager
def dispatching(settings: Settings) -> Iterator[None]:
    """A dispatcher that leads."""
    dispatcher = Dispatcher(settings)
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    try:
        yield
    finally:
        dispatcher.stop()
        thread.join(WAIT_S)
        dispatcher.close()


@contextmanager
def supervised_worker(settings: Settings, log: Path, changes: dict[str, object]) -> Iterator[list[str]]:
    """A worker that is restarted when it dies, as by ``headrace up``; yields the supervisor's output."""
    said: list[str] = []
    stopped = threading.Event()

    def is_ready(_child: Child) -> bool:
        return True

    argv = [sys.executable, "-m", "headrace.workers", "--model", "fake"]
    program = Program(Command("worker", argv, log, env=worker_environment(settings, changes), cwd=ROOT), is_ready)

    def tend() -> None:
        # In this thread, with which the kernel ends the child.
        program.start()
        supervisor = Supervisor([program], said.append)
        while not stopped.wait(0.1):
            supervisor.tend()
        program.stop()

    thread = threading.Thread(target=tend)
    thread.start()
    try:
        yield said
    finally:
        stopped.set()
        thread.join(WAIT_S)

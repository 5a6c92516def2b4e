"""P12: a worker with a stuck or endlessly looping engine is not ready within ``max_step_s``, and soon ends."""

import threading
import time
from dataclasses import dataclass, field

import httpx2
import pytest

from headrace.store.db.database import Database
from headrace.workers.celery.watchdog import EXIT_ENGINE_DEAD
from headrace.workers.health import OK, postgres_check, readiness
from tests.processes import free_port, wait_for
from tests.reliability.conftest import Report
from tests.reliability.rig import Kept, Stack
from tests.reliability.test_cancelling import engine

MODEL = "health"
MARK = "the mill that stands still"
MAX_STEP_S = 1.0
EVERY_S = 0.05


@dataclass
class Probe:
    """Asks ``/readyz`` again and again and keeps each answer with its time."""

    url: str
    answers: list[tuple[float, int | None]] = field(default_factory=list)
    complaints: set[str] = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask until stopped; None stands for no answer."""
        with httpx2.Client(trust_env=False, timeout=60) as http:
            while not self.stopped.wait(EVERY_S):
                asked_at = time.monotonic()
                try:
                    answer = http.get(self.url)
                    self.answers.append((asked_at, answer.status_code))
                    self.complaints.add(answer.json()["engine"])
                except httpx2.TransportError:
                    self.answers.append((asked_at, None))

    def statuses(self, after: float) -> list[tuple[float, int | None]]:
        return [(at, status) for at, status in self.answers if at >= after]


# A step that spins is seen as one that hangs is, and takes a core from all tests beside it.
@pytest.mark.parametrize("fault", ["hang", pytest.param("spin", marks=pytest.mark.full)])
def test_p12_an_engine_that_makes_no_step_is_not_ready(stack: Stack, report: Report, fault: str) -> None:
    version = stack.register(MODEL)
    port = free_port()
    worker = stack.worker(
        MODEL, model_faults=f"{fault}:{MARK}", max_step_s=MAX_STEP_S, worker_metrics_port=port, lease_s=1
    ).wait_ready()
    stack.dispatcher().wait_ready()
    probe = Probe(f"http://127.0.0.1:{port}/readyz")
    thread = threading.Thread(target=probe.run, daemon=True)
    thread.start()
    wait_for(lambda: [status for _, status in probe.answers[-3:]] == [200] * 3, "it is ready")
    (job_id,) = stack.accept([stack.new_job(version, MARK, 8)])
    began, num_exits = wait_for(lambda: seen_at_work(worker, port), "the engine has the request") or (0.0, 0)
    wait_for(lambda: len(worker.exits) > num_exits, "it ended")
    ended = time.monotonic()
    probe.stopped.set()
    thread.join()
    answers = [(at - began, status) for at, status in probe.statuses(began) if at <= ended]
    not_ready_s = next((at for at, status in answers if status != 200), ended - began)
    # No tolerance for a busy machine: an answer is of the time after its question, and the step began before ``began``.
    false_200s = [at for at, status in answers if status == 200 and at > MAX_STEP_S]
    (job,) = stack.wait_ended([job_id])
    report(
        f"P12.{fault}",
        seed=0,
        max_step_s=MAX_STEP_S,
        not_ready_after_s=round(not_ready_s, 2),
        ended_after_s=round(ended - began, 2),
        answers=len(answers),
        false_200s=len(false_200s),
        exit_code=worker.exits[0],
        crashes=len(worker.exits),
    )
    assert worker.exits[0] == EXIT_ENGINE_DEAD
    assert false_200s == []
    # On a busy machine it may end before it is asked.
    assert all(said == OK or "no step" in said for said in probe.complaints), probe.complaints
    assert job.error is not None
    assert job.error["code"] == "poison", "the job that hangs every engine is given up"


def seen_at_work(worker: Kept, port: int) -> tuple[float, int] | None:
    """Return the time, and how often the worker had ended, if its engine has a request."""
    num_exits = len(worker.exits)
    try:
        inside = engine(port)
    except httpx2.TransportError:
        return None
    return (time.monotonic(), num_exits) if inside["running"] + inside["waiting"] else None


def test_a_database_that_is_away_is_said() -> None:
    db = Database("postgresql://app@127.0.0.1:1/nowhere", pool_size=1, application_name="tests")
    assert "Postgres is not available" in postgres_check(db)()
    db.close()


def test_ready_is_who_has_nothing_to_complain_about() -> None:
    assert readiness({"engine": lambda: OK, "postgres": lambda: OK})[0] == 200
    status, said = readiness({"engine": lambda: OK, "postgres": lambda: "Postgres is not available"})
    assert (status, said["status"], said["postgres"]) == (503, "not ready", "Postgres is not available")

"""Each failpoint with each fault: the process is killed, stopped for longer than a lease, or gets an exception there.

With any fault, each job ends once with the right answer, its stream is complete, and the process is healthy or was
restarted. A cell has its own model, queue and process under test, so that many run in parallel. Cells with a fault in
the dispatcher, of which each database has one, have their own database.
"""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.store.jobs.claims import claim
from headrace.store.registry.models import queue_name
from tests.processes import wait_for
from tests.reliability import task_jobs
from tests.reliability.client import Client
from tests.reliability.conftest import Report
from tests.reliability.jobs import check_answer, check_ended_once, check_stream
from tests.reliability.rig import Databases, Kept, Stack, once
from tests.workers.receiver import Receiver

SIDE_BY_SIDE = 8
NUM_JOBS = 4
NUM_TOKENS = 200

API_POINTS = ("accept.before_commit", "accept.committed", "hint.before_publish")
# In the middle of what happens there, not at its first pass, where that makes a difference.
WORKER_POINTS = {
    "message.taken": 2,
    "claim.done": 1,
    "batch.midway": 60,
    "finish.before": 1,
    "finish.committed": 1,
    "renew.before": 1,
    "stream.published": 20,
    "drain.midway": 1,
}
DISPATCHER_POINTS = ("hint.before_publish", "sweep.midway", "webhook.accepted")
ALWAYS = {("worker", "batch.midway"), ("api", "accept.committed"), ("dispatcher", "sweep.midway")}
"""One kill for each kind of process runs in every run, the other cells only with ``--full``."""


@dataclass(frozen=True)
class Cell:
    """One fault: ``action`` at the n-th pass of ``point`` in ``process``."""

    process: str
    point: str
    action: str
    nth: int = 1
    task: str = "generate"

    def __str__(self) -> str:
        return f"{self.process if self.task == 'generate' else self.task}-{self.point}-{self.action}"

    @property
    def is_in_every_run(self) -> bool:
        return self.action == "kill" and self.task == "generate" and (self.process, self.point) in ALWAYS

    @property
    def model(self) -> str:
        """The model that this cell alone runs."""
        return str(self).replace("_", "-").replace(".", "-")

    @property
    def failpoints(self) -> str:
        """The setting."""
        return f"{self.point}={self.action}@{self.nth}"


CELLS = [
    Cell(process, point, action, nth)
    for action in ("stop", "kill", "raise")
    for process, points in (
        ("worker", WORKER_POINTS),
        ("api", dict.fromkeys(API_POINTS, 1)),
        ("dispatcher", dict.fromkeys(DISPATCHER_POINTS, 1)),
    )
    for point, nth in points.items()
] + [Cell("worker", point, "kill", task=task) for task in task_jobs.OTHERS for point in task_jobs.points_of(task)]

Outcomes = dict[Cell, Future[None]]


@pytest.fixture(autouse=True)
def no_process_is_left() -> None:
    """Leave the processes alone: those of other cells run while a cell's test ends, and each stack ends its own."""


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, databases: Databases, folder: Path) -> Iterator[Outcomes]:
    """All cells that were asked for, running side by side."""
    functions = [item for item in request.session.items if isinstance(item, pytest.Function)]
    items = [item for item in functions if item.module is request.module]
    chosen = [item.callspec.params["cell"] for item in items if hasattr(item, "callspec")]
    with databases.stack(folder) as shared, ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        shared.dispatcher()
        kept, client = shared.api()
        kept.wait_ready()

        def run(cell: Cell) -> None:
            if cell.task != "generate":
                strike_task(shared, client, cell)
            elif cell.process == "worker":
                strike_worker(shared, client, cell)
            elif cell.process == "api":
                strike_api(shared, cell)
            else:
                with databases.stack(folder) as own:
                    strike_dispatcher(own, cell)

        yield {cell: threads.submit(run, cell) for cell in chosen}
        threads.shutdown(cancel_futures=True)
        client.close()


@pytest.mark.parametrize(
    "cell", [pytest.param(cell, marks=[] if cell.is_in_every_run else pytest.mark.full) for cell in CELLS], ids=str
)
def test_whatever_happens_there_every_job_ends_once(outcomes: Outcomes, cell: Cell) -> None:
    outcomes[cell].result()


@pytest.mark.full
def test_l1_the_matrix_in_figures(outcomes: Outcomes, report: Report) -> None:
    passed = [cell for cell, outcome in outcomes.items() if outcome.exception() is None]
    report(
        "L1",
        seed=0,
        points=len({cell.point for cell in outcomes}),
        cells=len(outcomes),
        passed=len(passed),
        by_action=dict(Counter(cell.action for cell in passed)),
        by_task=dict(Counter(cell.task for cell in passed)),
        by_process=dict(Counter(cell.process for cell in passed)),
        jobs_in_each=NUM_JOBS,
    )
    assert len(passed) == len(outcomes)


def strike_worker(stack: Stack, client: Client, cell: Cell) -> None:
    stack.register(cell.model)
    worker = stack.worker(cell.model, arm=once(cell.failpoints))
    drain: Callable[[], None] = lambda: None  # noqa: E731
    if cell.point == "drain.midway":
        drain = lambda: stop_in_the_middle(stack, worker, cell)  # noqa: E731
    run_jobs(stack, client, cell, meanwhile=drain)
    check_struck(worker, cell)
    worker.stop()


def strike_task(stack: Stack, client: Client, cell: Cell) -> None:
    """Kill a worker of another task, and compare the jobs' outputs with one that the next worker computes in peace."""
    task_jobs.register_for(stack, cell.task, cell.model)
    is_beside = cell.point in {"renew.before", "drain.midway"}
    changes = {"fake_step_ms": task_jobs.SLOW_MS} if is_beside else {}
    worker = stack.worker(cell.model, arm=once(cell.failpoints), **changes)
    body = task_jobs.body_of(client, cell.task, cell.model)
    ids = [task_jobs.submit(client, body, f"{cell} {number}") for number in range(NUM_JOBS)]
    if cell.point == "drain.midway":
        stop_in_the_middle(stack, worker, cell)
    ended = stack.wait_ended(ids)
    check_struck(worker, cell)
    (calm,) = stack.wait_ended([task_jobs.submit(client, body, f"{cell} calm")])
    task_jobs.check_same_output(ended, calm)
    check_ended_once(stack, [*ids, calm.id])
    (row,) = stack.query("SELECT count(*) AS jobs FROM jobs WHERE model = :model", model=cell.model)
    assert row.jobs == NUM_JOBS + 1
    worker.stop()


def stop_in_the_middle(stack: Stack, worker: Kept, cell: Cell) -> None:
    """Ask the worker to end while it runs all the jobs."""
    sql = "SELECT FROM jobs WHERE model = :model AND state = 'running'"
    wait_for(lambda: len(stack.query(sql, model=cell.model)) == NUM_JOBS, "all run")
    worker.signal(signal.SIGTERM)


def strike_api(stack: Stack, cell: Cell) -> None:
    stack.register(cell.model)
    worker = stack.worker(cell.model)
    api, client = stack.api(arm=once(cell.failpoints))
    with closing(client):
        try:
            run_jobs(stack, client, cell)
        except AssertionError as error:
            error.add_note(f"exits of the API: {api.exits}, the end of its log: {api.log()[-3000:]}")
            raise
        check_struck(api, cell)
    api.stop()
    worker.stop()


def run_jobs(stack: Stack, client: Client, cell: Cell, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Submit, follow each stream, and compare it with the expected one."""
    # A drain gives jobs that are nearly done the time to end, and a lease is renewed a third of it after it began.
    is_beside = cell.point in {"drain.midway", "renew.before"}
    num_tokens = 6 * NUM_TOKENS if is_beside else NUM_TOKENS
    prompts = {f"{cell} {number}": number for number in range(NUM_JOBS)}
    with ThreadPoolExecutor(NUM_JOBS) as threads:
        ids = list(threads.map(lambda prompt: client.submit(cell.model, prompt, num_tokens, key=prompt), prompts))
        following = [threads.submit(client.follow, job_id) for job_id in ids]
        meanwhile()
        seen = [future.result() for future in following]
    for prompt, one, job in zip(prompts, seen, stack.wait_ended(ids), strict=True):
        check_answer(job, prompt, num_tokens)
        check_stream(one, job)
    check_ended_once(stack, ids)
    (row,) = stack.query("SELECT count(*) AS jobs FROM jobs WHERE model = :model", model=cell.model)
    assert row.jobs == NUM_JOBS, "a request that was sent again made no second job"


def strike_dispatcher(stack: Stack, cell: Cell) -> None:
    version = stack.register(cell.model)
    receiver = Receiver()
    prompts = [f"{cell} {number}" for number in range(NUM_JOBS)]
    webhook = {"url": receiver.url()} if cell.point == "webhook.accepted" else None
    ids = stack.accept([stack.new_job(version, prompt, 20, webhook=webhook) for prompt in prompts])
    if cell.point == "sweep.midway":
        # Held by a worker that is gone.
        assert len(claim(stack.db, "gone", queue_name(version.model, version.version), ids, 0.1)) == NUM_JOBS
    worker = stack.worker(cell.model)
    dispatcher = stack.dispatcher(arm=once(cell.failpoints), webhook_timeout_s=3, webhook_concurrency=64)
    for prompt, job in zip(prompts, stack.wait_ended(ids), strict=True):
        check_answer(job, prompt, 20)
    if webhook:
        check_told(stack, receiver)
    check_ended_once(stack, ids)
    check_struck(dispatcher, cell)
    receiver.close()
    worker.stop()


def check_told(stack: Stack, receiver: Receiver) -> None:
    """Each job's webhook was delivered and recorded; the one in progress during the fault may be delivered twice."""
    pending = "SELECT FROM webhook_deliveries WHERE state <> 'delivered'"
    wait_for(lambda: not stack.query(pending), "every webhook is known to be delivered")
    assert len({call.headers["webhook-id"] for call in receiver.calls}) == NUM_JOBS


def check_struck(process: Kept, cell: Cell) -> None:
    """The fault happened, and the process got over it: no thread of it is dead, or it was started again."""
    wait_for(lambda: process.events("failpoint", point=cell.point, action=cell.action), f"{cell} struck")
    if cell.action == "kill":
        wait_for(lambda: -signal.SIGKILL in process.exits, "it was killed")
    elif cell.action == "stop":
        wait_for(lambda: process.num_pauses == 1, "it stood still")
    else:
        assert process.exits or "Exception in thread" not in process.log(), process.log()[-4000:]

"""The operations on jobs race each other: whichever wins, a job ends once. In order they are ``reliability``'s."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

from headrace.features.webhooks.endpoints import create_endpoint
from headrace.store.db.database import Database
from headrace.store.errors import Conflict
from headrace.store.jobs.claims import Finish, Release, claim, finish, release
from headrace.store.jobs.jobs import accept, get, request_cancel
from headrace.store.jobs.sweeps import expire_overdue, sweep_leases
from headrace.store.schema.job_states import JobState
from tests.store.making import QUEUE, MakeJob, Query


def test_16_racing_threads_end_each_job_once(db: Database, tenant: str, make_job: MakeJob, query: Query) -> None:
    create_endpoint(db, tenant, url="https://example.com/hook", actor="test")
    jobs = [make_job(max_attempts=1 + n % 3, deadline_s=-1000.0 if n % 5 == 0 else 3600.0) for n in range(60)]
    accept(db, jobs)
    ids = [job.id for job in jobs]
    barrier = Barrier(16)

    def finish_some(turn: int) -> None:
        held = {
            job_id: c.epoch
            for suspects in (False, True)
            for job_id, c in claim(db, "w", QUEUE, ids[turn::3], 0, suspects=suspects).items()
        }
        finish(db, [Finish(i, e, JobState.SUCCEEDED, None, None, None, ("x",)) for i, e in held.items()])
        finish(db, [Finish(i, 1, JobState.FAILED, None, None, None, ()) for i in ids])

    def cancel_some(turn: int) -> None:
        for job_id in ids[turn::9]:
            try_to(partial(request_cancel, db, tenant, job_id))

    def sweep_some(turn: int) -> None:
        sweep_leases(db, 5 + turn)
        expire_overdue(db, 5 + turn)

    def release_some(turn: int) -> None:
        release(db, [Release(job_id, 1, charge=turn % 2 == 0) for job_id in ids[turn::2]])

    def race(thread: int) -> None:
        barrier.wait(20)
        act = (finish_some, cancel_some, sweep_some, release_some)[thread % 4]
        for turn in range(4):
            act(turn)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(race, range(16), timeout=60))
    for _ in range(4):  # what the race left over ends in good order
        sweep_leases(db)
        expire_overdue(db)
        for turn in range(3):
            finish_some(turn)
    ended = {job_id: get(db, tenant, job_id).state for job_id in ids}
    assert all(state.is_terminal for state in ended.values())
    assert len(set(ended.values())) > 1, "a race that one side always wins shows nothing"
    terminal = query("SELECT job_id, state FROM job_terminal")
    assert sorted((row["job_id"], row["state"]) for row in terminal) == sorted(ended.items())
    told = query("SELECT job_id, type FROM webhook_deliveries")
    assert sorted((row["job_id"], row["type"]) for row in told) == sorted((i, f"job.{s}") for i, s in ended.items())


def try_to(act: Callable[[], object]) -> None:
    """Do it unless the job has ended already, as a canceller cannot know."""
    try:
        act()
    except Conflict as refused:
        if refused.code != "job_not_cancellable":
            raise

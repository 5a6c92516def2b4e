"""A real worker process on a real Postgres and Redis, through everything that may happen to it."""

from collections.abc import Callable

from store.states import JobState

from .conftest import Bell, Bench, WorkerProcess

StartWorker = Callable[..., WorkerProcess]


def test_two_hundred_jobs_end_once_each(bench: Bench, bell: Bell, start_worker: StartWorker) -> None:
    ids = bench.submit(200)
    start_worker()
    ended = bench.wait_ended(ids)
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    assert {job.attempt for job in ended} == {1}

"""A worker announces itself and its capacity, and leaves jobs that are too long to workers with more."""

import threading

import pytest
from sqlalchemy import text

from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.db.presence import Serving
from headrace.store.jobs import jobs
from headrace.store.schema.job_states import JobState
from headrace.workers.presence import PresenceReporter
from tests.processes import wait_for
from tests.workers.conftest import Bench, StartHost, StartWorker


@pytest.mark.full
def test_a_worker_counts_from_its_start_until_it_is_told_to_stop(bench: Bench, start_worker: StartWorker) -> None:
    assert presence.read_serving(bench.db) == {}
    worker = start_worker(kv_pool_tokens=1024)
    wait_for(lambda: presence.read_serving(bench.db) == {bench.queue: Serving(1, 1024)}, "one serves")
    start_worker(kv_pool_tokens=16_384, max_slots=5)
    # Its capacity is no more than the window.
    wait_for(lambda: presence.read_serving(bench.db) == {bench.queue: Serving(2, 8192)}, "both serve")
    with bench.db.begin() as connection:
        slots = connection.execute(text("SELECT slots FROM worker_processes ORDER BY slots")).scalars()
        assert list(slots) == [5, bench.settings.max_slots]
    # It drains for as long as its job runs.
    bench.submit(1, sampling={"max_tokens": 8000})
    worker.signal(15)
    wait_for(lambda: presence.read_serving(bench.db)[bench.queue].workers == 1, "it takes no more")


def test_a_job_goes_to_the_worker_that_can_hold_it(bench: Bench, start_host: StartHost) -> None:
    small = start_host(num_blocks=8, block_tokens=16, context_window=8192)
    long, short = (bench.new_job(sampling={"max_tokens": n}, cost_tokens=60 + n) for n in (200, 16))
    jobs.accept(bench.db, [long, short])
    large = start_host(num_blocks=64, block_tokens=16, context_window=8192)
    small.run_to_end(long.id, short.id)
    assert (bench.job(long.id).state, bench.job(long.id).attempt) == (JobState.QUEUED, 0), "it is left to the large one"
    assert bench.job(short.id).state is JobState.SUCCEEDED
    large.run_to_end(long.id)
    assert bench.job(long.id).state is JobState.SUCCEEDED


def test_where_no_worker_can_hold_it_it_is_told_so(bench: Bench, start_host: StartHost) -> None:
    small = start_host(num_blocks=8, block_tokens=16, context_window=8192)
    long = bench.new_job(sampling={"max_tokens": 200}, cost_tokens=260)
    jobs.accept(bench.db, [long])
    small.run_to_end(long.id)
    ended = bench.job(long.id)
    assert (ended.state, (ended.error or {})["code"]) == (JobState.FAILED, "context_length_exceeded")


def test_a_postgres_that_hangs_does_not_hold_up_the_stop(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = threading.Event(), threading.Event()

    def hang(_db: Database, _row: str) -> None:
        asked.set()
        answers.wait()

    monkeypatch.setattr(presence, "leave_worker", hang)
    reporter = PresenceReporter(db, "tiny@1", lambda: None, is_taking=lambda: True)
    reporter.start()
    stop = threading.Thread(target=reporter.stop)
    stop.start()
    try:
        wait_for(lambda: asked.is_set() and not stop.is_alive(), "it goes on without the answer")
    finally:
        answers.set()
        stop.join()

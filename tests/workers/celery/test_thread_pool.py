"""The pool between Celery and the engine: threads, revokes, the drain, and the private hooks it stands on."""

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from celery import Celery
from celery.concurrency.base import BasePool
from celery.concurrency.thread import TaskPool
from kombu.asynchronous import Hub

from headrace.store.jobs.claims import Finish, Unclaimed
from headrace.store.redis.celery_queue import TASK
from headrace.store.schema.job_states import JobState
from headrace.workers.celery.thread_pool import HAND_BACK_S, Drain, EnginePool, Scalar, pool_class
from headrace.workers.celery.watchdog import DrainKeeper
from headrace.workers.runs.engine_admission import EngineAdmission
from headrace.workers.runs.outcome import Retry
from tests.processes import WAIT_S, wait_for
from tests.threads import threads_named
from tests.workers.engine_stub import EngineStub


class FakeProcess:
    """A process around the pool that records requests."""

    def __init__(self, drain_s: float) -> None:
        self.admission = EngineAdmission(EngineStub(), max_jobs=10, max_slots=10)
        self.drain = Drain(drain_s)
        self.ran: list[str] = []
        self.revoked: list[str] = []
        self.let_go = threading.Event()
        self.handed_back = 0
        self.outcome: Finish | Retry | Unclaimed | None = finish_as(JobState.SUCCEEDED)

    def run(self, job_id: str) -> Finish | Retry | Unclaimed | None:
        self.admission.entered(8, 8)
        self.ran.append(job_id)
        return self.outcome

    def revoke(self, task_id: str) -> None:
        self.revoked.append(task_id)

    def hand_back(self) -> None:
        self.handed_back += 1
        self.let_go.set()

    def engine_info(self) -> Mapping[str, Scalar]:
        return {"engine steps": 7}


@pytest.fixture
def process() -> FakeProcess:
    return FakeProcess(drain_s=0.3)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def pool(process: FakeProcess, hub: Hub) -> Iterator[EnginePool]:
    pool = pool_class(process)(4, app=Celery(set_as_current=False))
    pool.register_with_event_loop(hub)
    pool.start()
    yield pool
    process.let_go.set()
    pool.stop()


def test_it_is_a_threads_pool_that_celery_takes_as_a_class(process: FakeProcess) -> None:
    made = pool_class(process)
    assert issubclass(made, TaskPool)
    assert issubclass(made, BasePool)
    assert (made.__module__, made.__name__) == ("headrace.workers.celery.thread_pool", "EnginePool")
    assert made.uses_semaphore is False, "with it Celery would go round on_apply's count"


def test_a_job_runs_with_its_callbacks_and_its_ticket(pool: EnginePool, process: FakeProcess) -> None:
    accepted: list[int] = []
    results: list[str] = []
    inside = threading.Event()

    def target(word: str) -> str:
        process.admission.entered(8, 8)
        inside.set()
        assert process.let_go.wait(WAIT_S)
        return word

    job = pool.apply_async(
        target,
        ("water",),
        callback=results.append,
        accept_callback=lambda number, _at: accepted.append(number),
        correlation_id="job_1",
        timeout=5,
        soft_timeout=None,
    )
    assert inside.wait(WAIT_S)
    assert (pool.info["in-flight"], process.admission.num_taken) == (1, 1)
    process.let_go.set()
    job.ended.result(WAIT_S)
    assert (accepted, results) == ([job.number], ["water"])
    assert (pool.info["in-flight"], process.admission.num_taken) == (0, 0)


def test_a_job_is_run_past_celerys_tracer(pool: EnginePool, process: FakeProcess) -> None:
    traced: list[object] = []
    results: list[tuple[int, str, float]] = []
    args = (TASK, "job_1", {}, b"not decoded again", "application/json", "utf-8")
    pool.apply_async(lambda *_: traced.append(1), args, callback=results.append, correlation_id="job_1").ended.result(
        WAIT_S
    )
    ((failed, result, runtime),) = results
    assert (process.ran, traced, failed, result, runtime >= 0) == (["job_1"], [], 0, "None", True)
    assert process.admission.num_taken == 0


def test_a_target_that_raises_leaves_nothing_behind(pool: EnginePool, process: FakeProcess) -> None:
    def target() -> None:
        raise RuntimeError("no such luck")

    pool.apply_async(target, correlation_id="job_1").ended.result(WAIT_S)
    assert process.admission.num_taken == 0
    assert process.admission.has_credit()


def test_a_revoke_reaches_the_engine_by_number_and_by_result(pool: EnginePool, process: FakeProcess) -> None:
    job = pool.apply_async(lambda: process.let_go.wait(10), correlation_id="job_7")
    pool.terminate_job(job.number, "TERM")
    job.terminate("TERM")
    pool.terminate_job(4711)
    assert process.revoked == ["job_7", "job_7"]


def test_info_is_plain_scalars(pool: EnginePool) -> None:
    assert pool.info["engine steps"] == 7
    assert pool.info["max-concurrency"] == 4
    assert all(isinstance(value, str | int | float) for value in pool.info.values())


def test_the_event_loop_turns_in_a_drain(pool: EnginePool, process: FakeProcess, hub: Hub) -> None:
    """The hook: ``hub._pop_ready`` returns the callbacks of ``call_soon``."""
    acknowledged = threading.Event()

    def target() -> None:
        process.drain.requested.wait(WAIT_S)
        hub.call_soon(acknowledged.set)
        acknowledged.wait(2 * WAIT_S)

    process.drain = Drain(WAIT_S)
    pool.apply_async(target, correlation_id="job_1")
    pool.stop()
    assert acknowledged.is_set(), "a running job's acknowledgement went out while the pool waited for it"
    assert process.handed_back == 0


def test_timers_fire_in_a_drain(pool: EnginePool, process: FakeProcess, hub: Hub) -> None:
    """The hook: ``hub.fire_timers`` runs due timers."""
    beaten = threading.Event()
    hub.call_later(0.01, beaten.set)
    process.drain = Drain(WAIT_S)
    pool.apply_async(lambda: beaten.wait(2 * WAIT_S), correlation_id="job_1")
    pool.stop()
    assert beaten.is_set()
    assert process.handed_back == 0


def test_past_the_drain_jobs_are_handed_back(pool: EnginePool, process: FakeProcess) -> None:
    pool.apply_async(lambda: process.let_go.wait(WAIT_S), correlation_id="job_1")
    began = time.monotonic()
    pool.stop()
    assert time.monotonic() - began >= 0.15
    assert process.handed_back == 1
    # On a busy machine its thread may end after the pool.
    wait_for(lambda: process.admission.num_taken == 0, "the job's thread has ended")
    assert not process.admission.has_credit()


def test_a_callback_that_fails_does_not_stop_the_drain(pool: EnginePool, process: FakeProcess, hub: Hub) -> None:
    def broker_is_away() -> None:
        raise ConnectionError

    hub.call_soon(broker_is_away)
    pool.apply_async(lambda: process.let_go.wait(10), correlation_id="job_1")
    pool.stop()
    assert process.handed_back == 1


def test_asking_twice_cuts_the_drain_short() -> None:
    now = [0.0]
    drain = Drain(30.0, lambda: now[0])
    drain.request()
    now[0] = 10.0
    assert drain.remaining_s == 20.0 - HAND_BACK_S
    drain.request()
    assert drain.remaining_s == 0.0


def test_a_drain_that_nobody_asked_for_begins_when_the_pool_stops() -> None:
    drain = Drain(5.0, lambda: 1.0)
    assert not drain.requested.is_set()
    assert drain.remaining_s == 5.0 - HAND_BACK_S
    assert drain.requested.is_set()


def test_a_hand_back_that_hangs_does_not_keep_the_process() -> None:
    exits: list[int] = []
    drain = Drain(0.1)
    never = threading.Event()
    keeper = DrainKeeper(
        drain,
        wake=lambda: None,
        is_idle=lambda: False,
        hand_back=lambda: never.wait(2 * WAIT_S) and None,
        exit_now=exits.append,
    )
    keeper.start()
    drain.request()
    wait_for(lambda: exits == [0], "the process was ended")
    never.set()


@pytest.mark.parametrize("ends_by_itself", [True, False])
def test_a_stuck_event_loop_does_not_keep_the_process(ends_by_itself: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[object] = []
    handed_back = threading.Event()
    drain = Drain(0.1)
    keeper = DrainKeeper(
        drain,
        wake=lambda: happened.append("woken"),
        is_idle=lambda: False,
        hand_back=lambda: (happened.append("handed back"), handed_back.set())[0],
        exit_now=happened.append,
    )
    if ends_by_itself:
        monkeypatch.setattr(keeper, "GRACE_S", 2 * WAIT_S)
    keeper.start()
    drain.request()
    assert handed_back.wait(WAIT_S)
    if ends_by_itself:
        keeper.stop()
        wait_for(lambda: not threads_named("drain-keeper"), "its thread has ended")
        assert happened == ["woken", "handed back"]
    else:
        wait_for(lambda: 0 in happened, "the process was ended")
        assert happened == ["woken", "handed back", 0]


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_drain_ends_before_its_time_when_nothing_runs_or_the_process_ends_by_itself(
    is_idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    drain = Drain(600.0)

    def hand_back() -> None:
        happened.append("handed back")
        keeper.stop()

    keeper = DrainKeeper(
        drain,
        wake=lambda: happened.append("woken"),
        is_idle=lambda: is_idle,
        hand_back=hand_back,
        exit_now=lambda code: happened.append(f"exit {code}"),
    )
    monkeypatch.setattr(keeper, "GRACE_S", 2 * WAIT_S)
    keeper.start()
    drain.request()
    wait_for(lambda: happened, "it has begun")
    if not is_idle:
        keeper.stop()
    wait_for(lambda: not threads_named("drain-keeper"), "its thread has ended")
    assert happened == (["woken", "handed back"] if is_idle else ["woken"])


def finish_as(state: JobState, code: str | None = None) -> Finish:
    error = None if code is None else {"code": code, "message": "what the owner may read"}
    return Finish("job_1", 1, state, output=None, error=error, usage=None)


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        (finish_as(JobState.SUCCEEDED), None),
        (finish_as(JobState.FAILED, "poison"), "JobFailed('poison')"),
        (finish_as(JobState.EXPIRED, "deadline_exceeded"), "JobFailed('deadline_exceeded')"),
        (finish_as(JobState.CANCELLED), "Terminated('cancelled')"),
        (Retry("worker_lost", "what the owner may read"), "Retry(Retry(...), JobFailed('worker_lost'), None)"),
        (None, "Ignore("),
        (Unclaimed(JobState.RUNNING, None), "Ignore("),
        (Unclaimed(JobState.QUEUED, None), "Retry("),
        (Unclaimed(JobState.CANCELLED, None), "Terminated('cancelled')"),
        (Unclaimed(JobState.EXPIRED, {"code": "deadline_exceeded"}), "JobFailed('deadline_exceeded')"),
    ],
)
def test_celery_hears_how_a_job_ended_and_no_more(
    pool: EnginePool, process: FakeProcess, finish: Finish | Retry | Unclaimed | None, expected: str | None
) -> None:
    process.outcome = finish
    told: list[tuple[int, Any, float]] = []
    pool.apply_async(lambda: None, (TASK,), callback=told.append, correlation_id="job_1").ended.result(WAIT_S)
    ((failed, result, _),) = told
    assert failed == (expected is not None)
    assert str(repr(result.exception) if failed else result).startswith(expected or "None")
    assert not failed or "owner" not in str(result.traceback) + repr(result.exception)

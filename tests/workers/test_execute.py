"""One job from claim to outcome on a real engine, with faults injected where a device or a server would have them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cli.local.postgres import LocalPostgres
from migrations.schema import upgrade
from models.engine.requests import (
    Completion,
    EngineStopped,
    FinishReason,
    NumericalError,
    OutOfMemory,
    Progress,
    StepFailed,
)
from models.engine.runner import Row, RunnerBroken, StepPlan
from models.fake import FakeRunner
from prompts.tokenizer import ByteTokenizer
from store import claims, jobs, sweeps
from store.checkpoints import Checkpoint
from store.claims import Claim, Finish, Release
from store.db import Database
from store.errors import InvalidRequest
from store.payloads import Sampling
from store.registry import ModelVersion, register_version
from store.settings import Settings
from store.states import JobState
from workers import outcome
from workers.execute import parse_payload, sampling_params
from workers.host import Host, LoadedModel
from workers.outcome import Retry
from workers.watchdog import EXIT_ENGINE_DEAD

from .conftest import Bench, wait_for


@dataclass
class Running:
    """A host without Celery: ``run`` gives it a job id as the task would."""

    host: Host
    threads: ThreadPoolExecutor
    exits: list[int]

    def run(self, *job_ids: str) -> list[Future[None]]:
        return [self.threads.submit(self.host.executor.run, job_id) for job_id in job_ids]

    def run_to_end(self, *job_ids: str) -> None:
        for future in self.run(*job_ids):
            future.result(30)


StartHost = Callable[..., Running]


@pytest.fixture
def start_host(settings: Settings, version: ModelVersion) -> Iterator[StartHost]:
    """Start hosts around a FakeRunner: ``start_host(fault=…, step_s=…, settings={…})``."""
    started: list[Running] = []

    def start(settings_changes: dict[str, Any] | None = None, **runner: Any) -> Running:
        exits: list[int] = []
        host = Host(
            settings.model_copy(update=settings_changes or {}),
            LoadedModel(version, FakeRunner(**runner), ByteTokenizer()),
            owner=f"host-{len(started)}",
            max_jobs=64,
            exit_now=exits.append,
        )
        host.start()
        started.append(Running(host, ThreadPoolExecutor(32), exits))
        return started[-1]

    yield start
    for running in started:
        running.host.stop()
        running.threads.shutdown()


CLAIM = Claim(
    job_id="job_1",
    tenant_id="ten_1",
    epoch=4,
    attempt=2,
    model="fake",
    model_version=1,
    payload={},
    input_tokens=3,
    remaining_s=None,
    queued_s=0.5,
    max_attempts=3,
)


def completion(reason: FinishReason) -> Completion:
    return Completion(
        request_id="job_1/4",
        text="the mill",
        token_ids=(1, 2, 3),
        deltas=("the ", "mill"),
        finish_reason=reason,
        num_prompt_tokens=5,
        queued_s=0.25,
        first_token_s=1.0,
        total_s=2.0,
    )


@pytest.mark.parametrize(
    ("reason", "state", "code"),
    [
        (FinishReason.STOP, JobState.SUCCEEDED, None),
        (FinishReason.LENGTH, JobState.SUCCEEDED, None),
        (FinishReason.CANCELLED, JobState.CANCELLED, None),
        (FinishReason.DEADLINE, JobState.EXPIRED, "deadline_exceeded"),
    ],
)
def test_every_completion_has_a_state_and_keeps_its_text(reason: FinishReason, state: JobState, code: str) -> None:
    finish = outcome.completed(CLAIM, completion(reason), 0.125, Checkpoint(lineage=((4, 0),)))
    assert isinstance(finish, Finish)
    assert (finish.state, finish.epoch, finish.deltas, finish.lineage) == (state, 4, ("the ", "mill"), ((4, 0),))
    assert finish.output == {"text": "the mill", "finish_reason": reason.value}
    assert (finish.error or {}).get("code") == code
    assert finish.usage == {
        "input_tokens": 5,
        "output_tokens": 3,
        "queue_ms": 500.0,
        "first_token_ms": 1625.0,
        "compute_ms": 2000.0,
    }


START = Checkpoint(("the ",), ((1,),), ((2, 0), (4, 1)))


def test_a_completion_of_several_attempts_names_them_and_not_when_its_first_token_came() -> None:
    finish = outcome.completed(CLAIM, completion(FinishReason.STOP), 0.125, START)
    assert isinstance(finish, Finish)
    assert (finish.lineage, (finish.usage or {})["first_token_ms"]) == (((2, 0), (4, 1)), None)


@pytest.mark.parametrize(
    ("is_suspect", "crashes", "num_new", "cleared"),
    [(False, 0, 9, False), (True, 1, 8, True), (True, 1, 7, False), (True, 2, 9, False), (False, 1, 9, False)],
)
def test_what_is_handed_back_is_not_charged_and_may_have_stood_its_probation(
    is_suspect: bool, crashes: int, num_new: int, cleared: bool
) -> None:
    claim = replace(CLAIM, is_suspect=is_suspect, crashes=crashes)
    tokens = tuple(range(1 + num_new))
    whole = replace(completion(FinishReason.HANDED_BACK), token_ids=tokens, delta_token_ids=((0,), (1, 2)))
    retry = outcome.completed(claim, whole, 0.125, START)
    assert isinstance(retry, Retry)
    assert retry.release(claim) == Release(
        "job_1", 4, cleared=cleared, checkpoint=Checkpoint(("the ", "mill"), ((0,), (1, 2)), START.lineage)
    )


def test_errors_end_a_job_or_let_it_run_again() -> None:
    failed, numerical = StepFailed("a step"), NumericalError("not finite")
    failed.progress = numerical.progress = Progress(("the ",), ((1,),))
    retry = outcome.refused(CLAIM, failed, START.lineage)
    assert retry == Retry("worker_lost", "a step", checkpoint=START)
    finish = outcome.refused(CLAIM, numerical, START.lineage)
    assert isinstance(finish, Finish)
    assert (finish.state, (finish.error or {})["code"]) == (JobState.FAILED, "numerical_error")


def test_a_dead_engine_is_charged_to_those_who_were_inside() -> None:
    inside, outside = EngineStopped("gone"), EngineStopped("gone")
    inside.progress = Progress()
    verdicts = [outcome.refused(replace(CLAIM, attempt=3), error) for error in (inside, outside)]
    assert verdicts == [
        Retry("worker_lost", "gone", charge=True, crashed=True),
        Retry("worker_lost", "gone", charge=False, crashed=False),
    ]


@pytest.mark.parametrize(
    ("error", "code"), [(StepFailed("gone"), "max_attempts_exceeded"), (OutOfMemory("full"), "out_of_memory")]
)
def test_the_last_attempt_fails_for_good(error: StepFailed, code: str) -> None:
    last = outcome.refused(replace(CLAIM, attempt=3), error)
    assert isinstance(last, Finish)
    assert (last.error or {})["code"] == code


def test_sampling_reaches_the_engine_whole() -> None:
    sampling = Sampling(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        seed=11,
        stop=("END",),
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        ignore_eos=True,
    )
    params = sampling_params(sampling, 99)
    expected = sampling.model_dump() | {"max_tokens": 99}
    assert {name: getattr(params, name) for name in expected} == expected


def test_an_unreadable_payload_names_the_field_and_quotes_nothing() -> None:
    payload = {"input": {"prompt": "secret words"}, "sampling": {"temperature": "secret heat"}}
    claim = replace(CLAIM, payload=payload)
    with pytest.raises(InvalidRequest, match=r"sampling\.temperature") as caught:
        parse_payload(claim)
    assert caught.value.code == "invalid_payload"
    assert "secret" not in caught.value.message
    assert caught.value.__cause__ is None


def test_greedy_output_is_the_same_alone_and_in_a_batch(bench: Bench, start_host: StartHost) -> None:
    running = start_host(step_s=0.001)
    prompts = [f"question {n}" for n in range(12)]
    alone, batched = ([bench.submit(prompt=prompt)[0] for prompt in prompts] for _ in range(2))
    for job_id in alone:
        running.run_to_end(job_id)
    running.run_to_end(*batched)
    texts = [[(bench.job(job_id).output or {})["text"] for job_id in ids] for ids in (alone, batched)]
    assert texts[0] == texts[1]
    assert running.host.engine.stats().peak_batch > 1


def test_a_row_that_is_not_finite_fails_alone(bench: Bench, start_host: StartHost) -> None:
    def is_finite(row: Row) -> bool:
        return not (bytes(row.request.prompt).startswith(b"bad") and len(row.output) == 3)

    running = start_host(is_finite=is_finite)
    bad, good = bench.submit(prompt="bad")[0], bench.submit(prompt="good")[0]
    running.run_to_end(bad, good)
    assert ((bench.job(bad).error or {})["code"], bench.job(good).state) == ("numerical_error", JobState.SUCCEEDED)


def test_a_failed_step_is_tried_again_until_the_attempts_are_used_up(bench: Bench, start_host: StartHost) -> None:
    def fault(plan: StepPlan) -> None:
        if any(bytes(row.request.prompt).startswith(b"poison") for row in plan.rows):
            raise RuntimeError("device-side assert")

    running = start_host(fault=fault)
    (job_id,) = bench.submit(prompt="poison", max_attempts=2)
    running.run_to_end(job_id)
    job = bench.job(job_id)
    assert (job.state, job.attempt, job.announced_at) == (JobState.QUEUED, 1, None)
    running.run_to_end(job_id)
    job = bench.job(job_id)
    assert (job.state, job.attempt, (job.error or {})["code"]) == (JobState.FAILED, 2, "max_attempts_exceeded")
    (innocent,) = bench.submit(prompt="water")
    running.run_to_end(innocent)
    assert bench.job(innocent).state is JobState.SUCCEEDED


def test_running_out_of_memory_says_so(bench: Bench, start_host: StartHost) -> None:
    def fault(_plan: StepPlan) -> None:
        raise MemoryError

    running = start_host(fault=fault)
    (job_id,) = bench.submit(max_attempts=1)
    running.run_to_end(job_id)
    assert (bench.job(job_id).error or {})["code"] == "out_of_memory"


def test_a_text_that_postgres_cannot_hold_ends_its_job_all_the_same(bench: Bench, start_host: StartHost) -> None:
    running = start_host()
    engine = running.host.engine
    submit = engine.submit

    def poisoned(request: Any) -> Future[Completion]:
        if not bytes(request.prompt).startswith(b"nul"):
            return submit(request)
        future: Future[Completion] = Future()
        future.set_result(replace(completion(FinishReason.STOP), text="a\0b", deltas=("a\0b",)))
        return future

    engine.submit = poisoned  # type: ignore[method-assign]  # the fake cannot say U+0000
    bad, good = bench.submit(prompt="nul")[0], bench.submit(prompt="good")[0]
    running.run_to_end(bad, good)
    assert (bench.job(bad).state, bench.job(good).state) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
    assert (bench.job(bad).output or {})["text"] == "a\ufffdb"


def test_an_unexpected_error_is_an_attempt_and_logs_no_text(
    bench: Bench, start_host: StartHost, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    running = start_host()

    def broken(_request: Any) -> Future[Completion]:
        raise KeyError("secret prompt")

    running.host.engine.submit = broken  # type: ignore[method-assign]  # a bug that nobody foresaw
    (job_id,) = bench.submit(max_attempts=1)
    running.run_to_end(job_id)
    job = bench.job(job_id)
    assert (job.state, (job.error or {})["code"]) == (JobState.FAILED, "max_attempts_exceeded")
    printed = capsys.readouterr()
    assert "secret prompt" not in caplog.text + printed.out + printed.err + str(job)


def test_a_stale_outcome_is_refused_counted_and_has_no_end_frame(bench: Bench, start_host: StartHost) -> None:
    running = start_host(step_s=0.005)
    (job_id,) = bench.submit(sampling={"max_tokens": 60})
    (future,) = running.run(job_id)
    bench.wait_state(job_id, JobState.RUNNING)
    assert claims.release(bench.db, [Release(job_id, 1)]) == {job_id}
    newer = claims.claim(bench.db, "other", bench.queue, [job_id], 60)[job_id]
    running.host.leases.stop()  # nobody tells this worker that the job is not its own any more
    ends: list[tuple[str, int]] = []
    running.host.frames.put_end = lambda *end: ends.append(end)  # type: ignore[method-assign]  # watched
    future.result(30)
    assert (newer.epoch, bench.job(job_id).state) == (2, JobState.RUNNING)
    assert (running.host.counters.stale_finishes._value.get(), ends) == (1, [])


def test_a_hand_back_frees_the_engine_and_charges_nothing(bench: Bench, start_host: StartHost) -> None:
    running = start_host(step_s=0.005)
    ids = bench.submit(3, sampling={"max_tokens": 1900})
    futures = running.run(*ids)
    wait_for(lambda: running.host.engine.stats().running == 3, "all are in the engine")
    running.host.hand_back()
    for future in futures:
        future.result(5)
    assert {(bench.job(job_id).state, bench.job(job_id).attempt) for job_id in ids} == {(JobState.QUEUED, 0)}
    stats = running.host.engine.stats()
    assert (stats.running, stats.free_blocks) == (0, stats.total_blocks)
    assert running.host.counters.stale_finishes._value.get() == 0, "what was handed back is not even tried to finish"
    running.run_to_end(ids[0])
    assert bench.job(ids[0]).state is JobState.QUEUED, "a worker that handed back claims nothing more"


def test_a_cancel_between_claim_and_submission_is_not_lost(bench: Bench, start_host: StartHost) -> None:
    running = start_host({"lease_s": 0.6}, step_s=0.005)
    (job_id,) = bench.submit(sampling={"max_tokens": 1900})
    (future,) = running.run(job_id)
    bench.wait_state(job_id, JobState.RUNNING)
    jobs.request_cancel(bench.db, bench.tenant_id, job_id)
    future.result(5)
    assert bench.job(job_id).state is JobState.CANCELLED


@pytest.mark.parametrize("death", ["hang", "raise"])
def test_a_dead_engine_ends_the_process_and_charges_the_attempts(
    bench: Bench, start_host: StartHost, death: str
) -> None:
    both_inside, let_go = threading.Event(), threading.Event()

    def fault(_plan: StepPlan) -> None:
        both_inside.wait(10)
        if death == "raise":
            raise RunnerBroken("the device is gone")
        let_go.wait(30)

    running = start_host({"max_step_s": 1.0}, fault=fault)
    ids = bench.submit(2)
    futures = running.run(*ids)
    engine = running.host.engine
    wait_for(lambda: engine.stats().running + engine.stats().waiting == 2, "both are in the engine")
    both_inside.set()
    wait_for(lambda: running.exits, "the watchdog ended the process", 10)
    assert running.exits == [EXIT_ENGINE_DEAD]
    wait_for(lambda: bench.states(ids) == {JobState.QUEUED: 2}, "the jobs are back", 5)
    assert {bench.job(job_id).attempt for job_id in ids} == {1}
    let_go.set()
    for future in futures:
        future.result(10)
    assert bench.states(ids) == {JobState.QUEUED: 2}, "what the dead engine said afterwards changed nothing"


@dataclass
class Restartable:
    """A Postgres of this test alone."""

    server: LocalPostgres
    bench: Bench
    running: Running


@pytest.fixture
def restartable(server_folder: Path, settings: Settings) -> Iterator[Restartable]:
    server = LocalPostgres(server_folder / "pg", server_folder / "postgres.log")
    server.start()
    db = Database(server.url, application_name="tests")
    upgrade(db)
    version = register_version(
        db,
        model="fake",
        runner="fake",
        source="fake",
        digest="0" * 64,
        dtype="none",
        context_window=8192,
        files={},
        actor="tests",
    )
    own = settings.model_copy(update={"database_url": server.url, "lease_s": 6})
    exits: list[int] = []
    model = LoadedModel(version, FakeRunner(step_s=0.01), ByteTokenizer())
    host = Host(own, model, owner="w1", max_jobs=64, exit_now=exits.append)
    host.start()
    bench = Bench(db, own, version)
    running = Running(host, ThreadPoolExecutor(32), exits)
    yield Restartable(server, bench, running)
    host.stop()
    running.threads.shutdown()
    bench.close()
    db.close()
    server.stop()


def test_a_restart_of_postgres_loses_no_outcome_and_no_claim(restartable: Restartable) -> None:
    bench, running = restartable.bench, restartable.running
    early = bench.submit(4, sampling={"max_tokens": 60})
    late = bench.submit(4)
    computing = running.run(*early)
    wait_for(lambda: running.host.engine.stats().running == 4, "they compute")
    restartable.server.stop()
    claiming = running.run(*late)
    wait_for(lambda: running.host.engine.stats().completed == 4, "they are done with nowhere to write it")
    restartable.server.start()
    for future in (*computing, *claiming):
        future.result(30)
    ended = bench.wait_ended([*early, *late], timeout_s=5)
    assert {(job.state, job.attempt) for job in ended} == {(JobState.SUCCEEDED, 1)}
    assert sweeps.sweep_leases(bench.db).requeued == 0

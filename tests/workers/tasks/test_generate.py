"""One job from claim to outcome on a real engine, with faults injected where a device or a server would have them."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.local.postgres import LocalPostgres
from headrace.migrations.schema import upgrade
from headrace.models.engine.requests import (
    CompletionOutput,
    FinishReason,
)
from headrace.models.engine.runner import Row, RunnerBroken, StepPlan
from headrace.models.fakes.fake import FakeRunner
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.db.database import Database
from headrace.store.ids import new_id
from headrace.store.jobs import claims, jobs, sweeps
from headrace.store.jobs.claims import Release
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.registry.models import register_version
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from headrace.workers.celery.watchdog import EXIT_ENGINE_DEAD
from headrace.workers.tasks.generate import GenerateModel
from headrace.workers.worker_runtime import WorkerRuntime
from tests.features.flows.tools.test_tool_caller import value_of
from tests.processes import WAIT_S, wait_for
from tests.workers.conftest import Bench, Running, StartHost
from tests.workers.runs.test_outcome import completion


def test_greedy_output_is_the_same_alone_and_in_a_batch(bench: Bench, start_host: StartHost) -> None:
    running = start_host(step_s=0.001)
    prompts = [f"question {n}" for n in range(12)]
    alone, batched = ([bench.submit(prompt=prompt)[0] for prompt in prompts] for _ in range(2))
    for job_id in alone:
        running.run_to_end(job_id)
    running.run_to_end(*batched)
    texts = [[(bench.job(job_id).output or {})["text"] for job_id in ids] for ids in (alone, batched)]
    assert texts[0] == texts[1]
    assert running.runtime.engine.stats().peak_batch > 1


def test_a_tenant_finds_the_beginnings_that_it_has_computed_and_nobody_elses(
    bench: Bench, start_host: StartHost
) -> None:
    running = start_host()
    stats = running.runtime.engine.stats
    prompt = "a beginning of more than sixteen tokens"
    other = api_keys.create_tenant(bench.db, new_id("tenant"))
    for tenant_id in (bench.tenant_id, other):
        running.run_to_end(*bench.submit(prompt=prompt, tenant_id=tenant_id))
    assert stats().cached_tokens == 0
    running.run_to_end(*bench.submit(prompt=prompt))
    assert stats().cached_tokens == len(prompt) // 16 * 16


def test_in_the_engine_a_better_class_goes_first(bench: Bench, start_host: StartHost) -> None:
    all_came = threading.Event()
    running = start_host({"max_slots": 2}, fault=lambda _plan: all_came.wait(0.02))
    stats = running.runtime.engine.stats
    longest, long = (bench.submit(sampling={"max_tokens": max_tokens})[0] for max_tokens in (4000, 500))
    batch, interactive = (
        bench.submit(service_class=name)[0] for name in (ServiceClass.BATCH, ServiceClass.INTERACTIVE)
    )
    futures = running.run(longest)
    wait_for(lambda: stats().running == 1, "the oldest runs")
    futures += running.run(long)
    wait_for(lambda: stats().running == 2, "every slot is taken")
    futures += running.run(batch)
    wait_for(lambda: stats().waiting == 1, "the batch job waits")
    futures += running.run(interactive)
    wait_for(lambda: stats().waiting == 2, "both wait")
    all_came.set()
    for future in futures:
        future.result(WAIT_S)
    ends = {job_id: bench.job(job_id).completed_at for job_id in (interactive, batch)}
    assert sorted(ends, key=lambda job_id: str(ends[job_id])) == [interactive, batch]


def test_a_job_without_a_seed_has_one_of_its_own_in_every_attempt(bench: Bench, start_host: StartHost) -> None:
    """So a second attempt generates the same text as the lost one."""
    seen: dict[str, list[int | None]] = {}

    def fault(plan: StepPlan) -> None:
        for row in plan.rows:
            seen.setdefault(bytes(row.request.prompt).decode(), []).append(row.request.sampling.seed)
        if any(len(seeds) == 1 for seeds in seen.values()):
            raise RuntimeError("device-side assert")

    running = start_host(fault=fault)
    ids = [bench.submit(prompt=prompt, sampling={"temperature": 1.0})[0] for prompt in ("one", "two")]
    given = bench.submit(prompt="three", sampling={"temperature": 1.0, "seed": 7})[0]
    for job_id in (*ids, given):
        running.run_to_end(job_id)
        assert bench.job(job_id).state is JobState.QUEUED
        running.run_to_end(job_id)
        assert bench.job(job_id).state is JobState.SUCCEEDED
    (one,), (two,), (three,) = (set(seeds) for seeds in seen.values())
    assert None not in (one, two)
    assert one != two
    assert three == 7


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
    engine = running.runtime.engine
    submit = engine.submit

    def poisoned(request: Any) -> Future[CompletionOutput]:
        if not bytes(request.prompt).startswith(b"nul"):
            return submit(request)
        future: Future[CompletionOutput] = Future()
        future.set_result(replace(completion(FinishReason.STOP), text="a\0b", deltas=("a\0b",)))
        return future

    engine.submit = poisoned  # type: ignore[method-assign]  # the fake cannot generate U+0000
    bad, good = bench.submit(prompt="nul")[0], bench.submit(prompt="good")[0]
    running.run_to_end(bad, good)
    assert (bench.job(bad).state, bench.job(good).state) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
    assert (bench.job(bad).output or {})["text"] == "a\ufffdb"


def test_an_unexpected_error_is_an_attempt_and_logs_no_text(
    bench: Bench, start_host: StartHost, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    running = start_host()

    def broken(_request: Any) -> Future[CompletionOutput]:
        raise KeyError("secret prompt")

    running.runtime.engine.submit = broken  # type: ignore[method-assign]  # an unexpected bug
    (job_id,) = bench.submit(max_attempts=1)
    running.run_to_end(job_id)
    job = bench.job(job_id)
    assert (job.state, (job.error or {})["code"]) == (JobState.FAILED, "max_attempts_exceeded")
    printed = capsys.readouterr()
    assert "secret prompt" not in caplog.text + printed.out + printed.err + str(job)


def test_a_stale_outcome_is_refused_counted_and_has_no_end_frame(bench: Bench, start_host: StartHost) -> None:
    may_go = threading.Event()
    running = start_host(fault=lambda _plan: may_go.wait(4 * WAIT_S))
    (job_id,) = bench.submit(sampling={"max_tokens": 60})
    (future,) = running.run(job_id)
    bench.wait_state(job_id, JobState.RUNNING)
    assert claims.release(bench.db, [Release(job_id, 1)]) == {job_id}
    newer = claims.claim(bench.db, "other", bench.queue, [job_id], 60)[job_id]
    running.runtime.leases.stop()  # this worker is not notified that it lost the job
    ends: list[tuple[str, int]] = []
    running.runtime.frames.put_end = lambda *end: ends.append(end)  # type: ignore[method-assign]  # watched
    may_go.set()
    future.result(WAIT_S)
    assert (newer.epoch, bench.job(job_id).state) == (2, JobState.RUNNING)
    assert (value_of(running.runtime.metrics, "headrace_stale_finishes_total"), ends) == (1, [])


def test_a_hand_back_frees_the_engine_and_charges_nothing(bench: Bench, start_host: StartHost) -> None:
    running = start_host(step_s=0.005)
    ids = bench.submit(3, sampling={"max_tokens": 1900})
    futures = running.run(*ids)
    wait_for(lambda: running.runtime.engine.stats().running == 3, "all are in the engine")
    running.runtime.hand_back()
    for future in futures:
        future.result(WAIT_S)
    assert {(bench.job(job_id).state, bench.job(job_id).attempt) for job_id in ids} == {(JobState.QUEUED, 0)}
    stats = running.runtime.engine.stats()
    assert (stats.running, stats.free_blocks) == (0, stats.total_blocks)
    assert value_of(running.runtime.metrics, "headrace_stale_finishes_total") == 0, (
        "what was handed back is not even tried to finish"
    )
    running.run_to_end(ids[0])
    assert bench.job(ids[0]).state is JobState.QUEUED, "a worker that handed back claims nothing more"


def test_a_cancel_between_claim_and_submission_is_not_lost(bench: Bench, start_host: StartHost) -> None:
    running = start_host({"lease_s": 6}, step_s=0.02)
    (job_id,) = bench.submit(sampling={"max_tokens": 1900})
    (future,) = running.run(job_id)
    bench.wait_state(job_id, JobState.RUNNING)
    jobs.request_cancel(bench.db, bench.tenant_id, job_id)
    future.result(WAIT_S)
    assert bench.job(job_id).state is JobState.CANCELLED


@pytest.mark.parametrize("death", ["hang", "raise"])
def test_a_dead_engine_ends_the_process_and_charges_the_attempts(
    bench: Bench, start_host: StartHost, death: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_step, both_inside, let_go = threading.Event(), threading.Event(), threading.Event()

    def fault(_plan: StepPlan) -> None:
        in_step.set()
        both_inside.wait(4 * WAIT_S)
        if death == "raise":
            raise RunnerBroken("the device is gone")
        let_go.wait(4 * WAIT_S)

    running = start_host({"max_step_s": 600}, fault=fault)
    ids = bench.submit(2)
    futures = running.run(ids[0])
    assert in_step.wait(WAIT_S)
    futures += running.run(ids[1])
    engine = running.runtime.engine
    wait_for(lambda: engine.stats().running + engine.stats().waiting == 2, "both are in the engine")
    # The longest step is over only now: both jobs had all the time to come in.
    is_healthy = engine.is_healthy
    monkeypatch.setattr(engine, "is_healthy", lambda _max_step_s: is_healthy(0.0))
    both_inside.set()
    wait_for(lambda: running.exits, "the watchdog ended the process")
    assert running.exits == [EXIT_ENGINE_DEAD]
    wait_for(lambda: bench.states(ids) == {JobState.QUEUED: 2}, "the jobs are back")
    rows = bench.query("SELECT id, attempt, crashes, is_suspect FROM jobs ORDER BY id")
    assert [tuple(row) for row in rows] == [(ids[0], 1, 1, True), (ids[1], 1, 0, False)], (
        "both are charged; only the one in the step may have ended it, and runs alone next time"
    )
    let_go.set()
    for future in futures:
        future.result(WAIT_S)
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
    own = settings.model_copy(update={"database_url": server.url, "lease_s": 60})
    exits: list[int] = []
    model = GenerateModel(version, FakeRunner(step_s=0.01), ByteTokenizer())
    runtime = WorkerRuntime(own, model, owner="w1", max_jobs=64, exit_now=exits.append)
    runtime.start()
    bench = Bench(db, own, version)
    running = Running(runtime, ThreadPoolExecutor(32), exits)
    yield Restartable(server, bench, running)
    runtime.stop()
    running.threads.shutdown()
    bench.close()
    db.close()
    server.stop()


@pytest.mark.full
def test_a_restart_of_postgres_loses_no_outcome_and_no_claim(restartable: Restartable) -> None:
    bench, running = restartable.bench, restartable.running
    early = bench.submit(4, sampling={"max_tokens": 500})
    late = bench.submit(4)
    computing = running.run(*early)
    wait_for(lambda: running.runtime.engine.stats().running == 4, "they compute")
    restartable.server.stop()
    claiming = running.run(*late)
    wait_for(lambda: running.runtime.engine.stats().completed == 4, "they are done with nowhere to write it")
    restartable.server.start()
    for future in (*computing, *claiming):
        future.result(WAIT_S)
    ended = bench.wait_ended([*early, *late])
    assert {(job.state, job.attempt) for job in ended} == {(JobState.SUCCEEDED, 1)}
    assert sweeps.sweep_leases(bench.db).requeued == 0

"""The outcome of an encode request that the engine ended, and the policy of the thread that computes."""

import os
import sys
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.models.engine.requests import EncodeOutput, EncodeRequest, FinishReason
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.metrics.worker_metrics import Served, WorkerMetrics
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.streams.checkpoints import Checkpoint
from headrace.workers.runs.attempt_spans import AttemptSpans
from headrace.workers.runs.engine_admission import EngineAdmission
from headrace.workers.runs.in_flight import Attempt, AttemptId, InFlightAttempts
from headrace.workers.runs.outcome import Retry
from headrace.workers.tasks.encoding import EncodeJob, EncodeWork, completed, new_call_engine
from headrace.workers.tasks.task_model import quiet_setup
from tests.features.flows.tools.test_tool_caller import value_of
from tests.processes import wait_for
from tests.workers.conftest import StartWorker
from tests.workers.engine_stub import EngineStub

ANY: Any = None
CLAIM = Claim("job_1", "tnt_1", 1, 1, 1, "tiny", 1, {}, 1, None, 0.0, 3, task="embed")


@pytest.mark.parametrize(
    ("reason", "state", "output", "code"),
    [
        (FinishReason.STOP, JobState.SUCCEEDED, {"vectors": 1}, None),
        (FinishReason.CANCELLED, JobState.CANCELLED, None, None),
        (FinishReason.DEADLINE, JobState.EXPIRED, None, "deadline_exceeded"),
    ],
)
def test_the_reason_of_the_engine_decides_the_state(
    reason: FinishReason, state: JobState, output: dict | None, code: str | None
) -> None:
    vectors = (b"1",) if reason is FinishReason.STOP else ()
    found = completed(CLAIM, EncodeOutput("job_1", vectors, reason, 3, 0.1), lambda made: {"vectors": len(made)})
    assert isinstance(found, Finish)
    assert (found.state, found.output, (found.error or {}).get("code")) == (state, output, code)


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the policy SCHED_IDLE")


@linux_only
@pytest.mark.parametrize("version", ["fake-encoder"], indirect=True)
@pytest.mark.full
def test_only_the_computing_thread_of_an_encoders_worker_gives_way(start_worker: StartWorker) -> None:
    """No job is run: on a busy machine a thread that gives way may not get a turn for a minute."""
    worker = start_worker(encode_gives_way=True)

    def policies() -> Counter[int]:
        found: Counter[int] = Counter()
        for thread in Path(f"/proc/{worker.pid}/task").iterdir():
            with suppress(ProcessLookupError):
                found[os.sched_getscheduler(int(thread.name))] += 1
        return found

    found = wait_for(lambda: (found := policies())[os.SCHED_IDLE] and found, "the engine's thread gives way")
    assert isinstance(found, Counter)
    assert found.keys() == {os.SCHED_IDLE, os.SCHED_OTHER}
    assert found[os.SCHED_IDLE] == 1 < found[os.SCHED_OTHER]


def test_an_engine_for_calls_says_that_it_died_and_has_room() -> None:
    setup = replace(quiet_setup(Settings(), 3), on_room=lambda: None, on_failed=lambda _error: None)
    engine = new_call_engine(ANY, setup, 5.0)
    assert (engine.on_room, engine.on_failed) == (setup.on_room, setup.on_failed)


class OneRequest:
    """Stands for an engine: it keeps the request, and its result is that of the test."""

    def __init__(self, result: EncodeOutput) -> None:
        self.result = result
        self.requests: list[EncodeRequest] = []

    def submit(self, request: EncodeRequest) -> Future[EncodeOutput]:
        self.requests.append(request)
        done: Future[EncodeOutput] = Future()
        done.set_result(self.result)
        return done


def worked(claim: Claim, reason: FinishReason = FinishReason.STOP) -> tuple[Any, OneRequest, list[Any], WorkerMetrics]:
    """Run a job of two inputs with passages; return its outcome, its engine, its frames and its metrics."""
    engine = OneRequest(EncodeOutput("job_1", (b"one", b"two"), reason, 30, 0.5))
    frames: list[Any] = []
    metrics = WorkerMetrics(Served("tiny", "1", "embed"))
    in_flight = InFlightAttempts()
    attempt = Attempt(claim, 100.0, 150.0, 100.0)
    in_flight.add(attempt)
    stub: Any = engine
    context: Any = SimpleNamespace(
        admission=EngineAdmission(EngineStub(), max_jobs=1, max_slots=1),
        in_flight=in_flight,
        spans=AttemptSpans(),
        frames=SimpleNamespace(put_start=lambda *given: frames.append(given)),
        metrics=metrics,
    )
    stored: Any = lambda vectors: ("stored", vectors)  # noqa: E731 - a stub of one line
    job = EncodeJob(((1, 2), (3,)), "options", lambda vectors: {"vectors": len(vectors)}, stored)
    return EncodeWork(stub, context, lambda _claim, _context: job).compute(attempt), engine, frames, metrics


def test_a_job_for_an_encoder_is_one_request_and_has_its_passages_if_it_succeeds() -> None:
    claim = replace(CLAIM, class_rank=2, queued_s=2.0)
    done, engine, frames, metrics = worked(claim)
    assert engine.requests == [EncodeRequest(AttemptId("job_1", 1), ((1, 2), (3,)), "options", 150.0, class_rank=2)]
    assert (done.stored, done.output, frames) == (("stored", (b"one", b"two")), {"vectors": 2}, [])
    assert (done.job_id, done.epoch, done.tenant_id) == ("job_1", 1, "tnt_1")
    used = done.usage
    assert (used["input_tokens"], used["output_tokens"], used["queue_ms"], used["compute_ms"]) == (30, 0, 2000.0, 500.0)
    batch = {"class": "batch"}
    assert value_of(metrics, "headrace_prefill_seconds_sum", **batch) == 0.5
    assert value_of(metrics, "headrace_queue_seconds_count", **batch) == 1
    assert value_of(metrics, "headrace_queue_seconds_sum", **batch) <= 2.0 + time.monotonic() - 100.0
    later, _, frames, metrics = worked(replace(claim, epoch=3))
    assert frames == [(AttemptId("job_1", 3), Checkpoint(lineage=((3, 0),)))]
    assert value_of(metrics, "headrace_queue_seconds_count", **batch) == 0
    assert later.stored is not None


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.DEADLINE])
def test_a_job_that_did_not_succeed_stores_no_passages(reason: FinishReason) -> None:
    ended, *_ = worked(CLAIM, reason)
    assert (ended.stored, ended.output, ended.usage["input_tokens"]) == (None, None, 30)
    handed_back, *_ = worked(CLAIM, FinishReason.HANDED_BACK)
    assert handed_back == Retry("handed_back", handed_back.message, charge=False)


def test_an_error_of_an_expired_job_names_its_attempt() -> None:
    found = completed(replace(CLAIM, attempt=2), EncodeOutput("job_1", (), FinishReason.DEADLINE, 3, 0.1), lambda _: {})
    assert isinstance(found, Finish)
    error = found.error or {}
    assert (error["code"], error["retryable"], error["attempt"]) == ("deadline_exceeded", False, 2)

"""P9: a job ends at its deadline by the database's clock, whatever hangs and whatever time a worker believes it is."""

import importlib.util
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import JobState
from tests.reliability.conftest import Report
from tests.reliability.jobs import check_answer, check_ended_once
from tests.reliability.rig import LEASE_S, SWEEP_S, Stack

MODEL = "deadlines"
MARK = "a step without an end"
DAY_S = 86_400
NUM_EACH = 4
SLOW_TOKENS = 4000
TOLERANCE_S = 30.0
"""How late a sweep may come to its turn on a busy machine. A hung step lasts four times as long."""


def late_s(job: Job) -> float:
    """How long after its deadline a job ended."""
    assert job.completed_at is not None
    assert job.deadline_at is not None
    return (job.completed_at - job.deadline_at).total_seconds()


def check_expired(jobs: list[Job], bound_s: float) -> list[float]:
    late = [late_s(job) for job in jobs]
    assert {job.state for job in jobs} == {JobState.EXPIRED}
    assert min(late) >= 0, "none early"
    assert max(late) <= bound_s, late
    return late


def test_p9_a_hung_step_holds_no_deadline_up(stack: Stack, report: Report) -> None:
    version = stack.register(MODEL)
    stack.worker(MODEL, model_faults=f"hang:{MARK}", max_step_s=4 * TOLERANCE_S).wait_ready()
    stack.dispatcher().wait_ready()
    prompts = [MARK, "beside it 1", "beside it 2"]
    ids = stack.accept([stack.new_job(version, prompt, SLOW_TOKENS, deadline_s=3.0) for prompt in prompts])
    late = check_expired(stack.wait_ended(ids), LEASE_S + SWEEP_S + TOLERANCE_S)
    report(
        "P9.hung-step",
        seed=0,
        jobs=len(ids),
        late_s=figures(late),
        lease_s=LEASE_S,
        sweep_s=SWEEP_S,
        early=num_early(late),
        **check_ended_once(stack, ids),
    )


@pytest.mark.full
@pytest.mark.parametrize("off_s", [DAY_S, -DAY_S], ids=["a day ahead", "a day behind"])
def test_p9_a_workers_clock_decides_nothing(stack: Stack, report: Report, off_s: int) -> None:
    version = stack.register(MODEL)
    worker = stack.worker(MODEL, extra=another_clock(off_s)).wait_ready()
    stack.dispatcher().wait_ready()
    said = datetime.fromisoformat(worker.events("worker_ready")[0]["timestamp"])
    really_off_s = (said - datetime.now(UTC)).total_seconds()
    assert abs(really_off_s - off_s) < 300, "the worker's clock is as wrong as it should be"
    short = stack.accept([stack.new_job(version, f"short {n}", SLOW_TOKENS, deadline_s=2.0) for n in range(NUM_EACH)])
    long = stack.accept([stack.new_job(version, f"long {n}", 40, deadline_s=3600.0) for n in range(NUM_EACH)])
    late = check_expired(stack.wait_ended(short), SWEEP_S + TOLERANCE_S)
    for number, job in enumerate(stack.wait_ended(long)):
        check_answer(job, f"long {number}", 40)
    report(
        f"P9.clock{off_s:+d}s",
        seed=0,
        expired=len(short),
        late_s=figures(late),
        early=num_early(late),
        succeeded=len(long),
        **check_ended_once(stack, [*short, *long]),
        clock_off_s=round(really_off_s),
        attempts=max(job.attempt for job in stack.wait_ended(long)),
    )


def another_clock(off_s: int) -> dict[str, str]:
    """The environment of a process with a wrong wall clock; its monotonic clock is right."""
    spec: Any = importlib.util.find_spec("libfaketime")
    library = Path(spec.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    return {"LD_PRELOAD": str(library), "FAKETIME": f"{off_s:+d}s", "DONT_FAKE_MONOTONIC": "1"}


def num_early(late: list[float]) -> int:
    return sum(one < 0 for one in late)


def figures(late: list[float]) -> dict[str, float]:
    return {"p50": round(sorted(late)[len(late) // 2], 2), "max": round(max(late), 2)}

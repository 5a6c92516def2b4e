"""Attempts that end before their job does: suspects on probation, steps that fail, checkpoints that are no good."""

from math import inf

import redis

from headrace.models.engine.runner import StepPlan
from headrace.models.fakes.fake import next_token
from headrace.store.jobs import claims, jobs
from headrace.store.jobs.claims import Release
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import Checkpoint
from headrace.store.streams.fencing import FencedLogs
from headrace.store.streams.stream_log import Frame
from headrace.workers.runs.claim_client import parts

from .conftest import Bench, StartHost

TOKEN_BY_TOKEN = {"stream_deltas_per_s": inf}


def lose(bench: Bench, job_id: str) -> None:
    """Let a worker die with the job in its hands."""
    is_suspect = bench.query("SELECT is_suspect FROM jobs WHERE id = :id", id=job_id)[0].is_suspect
    held = claims.claim(bench.db, "other", bench.queue, [job_id], 60, suspects=is_suspect)[job_id]
    assert claims.release(bench.db, [Release(job_id, held.epoch, charge=True, crashed=True)])


def test_a_suspect_runs_alone_for_eight_tokens_and_then_in_company(bench: Bench, start_host: StartHost) -> None:
    running = start_host(TOKEN_BY_TOKEN)
    job_id, alike = bench.submit(2, prompt="the same", sampling={"max_tokens": 40}, max_attempts=9)
    lose(bench, job_id)
    running.run_to_end(job_id)
    assert bench.job(job_id).state is JobState.QUEUED, "a suspect is not for a hint"
    attempt = running.runtime.claim_client.claim_suspect()
    assert attempt is not None
    running.runtime.job_runner.run_claimed(attempt)
    (row,) = bench.query("SELECT state, attempt, crashes, is_suspect FROM jobs WHERE id = :id", id=job_id)
    assert tuple(row) == ("queued", 1, 1, False)
    (kept,) = bench.query("SELECT deltas, lineage FROM job_checkpoints")
    assert (len("".join(kept.deltas)), kept.lineage) == (8, [[2, 0]])
    running.run_to_end(job_id, alike)
    job = bench.job(job_id)
    assert (job.state, job.epoch, job.attempt, job.output) == (JobState.SUCCEEDED, 3, 2, bench.job(alike).output)
    stored = jobs.stored_deltas(bench.db, bench.tenant_id, job_id)
    assert stored is not None
    assert stored.lineage == ((2, 0), (3, 8))


def test_after_a_second_crash_a_job_runs_alone_to_its_end(bench: Bench, start_host: StartHost) -> None:
    running = start_host()
    (job_id,) = bench.submit(max_attempts=9)
    for _ in range(2):
        lose(bench, job_id)
    attempt = running.runtime.claim_client.claim_suspect()
    assert attempt is not None
    running.runtime.job_runner.run_claimed(attempt)
    assert bench.job(job_id).state is JobState.SUCCEEDED


def test_a_step_that_fails_fails_one_of_many_and_goes_on_after_what_it_had(bench: Bench, start_host: StartHost) -> None:
    strikes = [1]

    def fault(plan: StepPlan) -> None:
        rows = [row for row in plan.rows if bytes(row.request.prompt).startswith(b"bad") and len(row.output) == 5]
        if rows and strikes[0]:
            strikes[0] = len(plan.rows) > 1  # until it is alone
            raise RuntimeError("a kernel")

    running = start_host(TOKEN_BY_TOKEN, fault=fault, step_s=0.005)
    bad, *good = bench.submit(prompt="bad") + bench.submit(7, prompt="good")
    running.run_to_end(bad, *good)
    assert {(bench.job(job_id).state, bench.job(job_id).attempt) for job_id in good} == {(JobState.SUCCEEDED, 1)}
    assert (bench.job(bad).state, bench.job(bad).attempt) == (JobState.QUEUED, 1)
    assert bench.query("SELECT crashes, is_suspect FROM jobs WHERE id = :id", id=bad) == [(0, False)]
    running.run_to_end(bad)
    job = bench.job(bad)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    tokens: list[int] = []
    while len(tokens) < 16:
        tokens.append(next_token(b"bad", tokens, ends=False))
    assert (job.output or {})["text"] == bytes(tokens).decode()
    stored = jobs.stored_deltas(bench.db, bench.tenant_id, bad)
    assert stored is not None
    assert stored.lineage == ((1, 0), (2, 5))


def test_a_checkpoint_that_does_not_fit_its_tokens_is_left_and_readers_are_told(
    bench: Bench, start_host: StartHost, redis_client: redis.Redis
) -> None:
    running = start_host()
    (job_id,) = bench.submit()
    held = claims.claim(bench.db, "other", bench.queue, [job_id], 60)[job_id]
    wrong = Checkpoint(("not", "these"), ((1,), (2,)), ((1, 0),))
    assert claims.release(bench.db, [Release(job_id, held.epoch, checkpoint=wrong)])
    running.run_to_end(job_id)
    assert bench.job(job_id).state is JobState.SUCCEEDED
    assert running.runtime.frames.flush(10)
    frames = FencedLogs(bench.settings.redis_url, ttl_s=60, timeout_s=10).fence(job_id, 3)
    assert frames[0] == Frame(job_id, 2, 0, None, checkpoint=Checkpoint(lineage=((2, 0),)))
    stored = jobs.stored_deltas(bench.db, bench.tenant_id, job_id)
    assert stored is not None
    assert stored.lineage == ((2, 0),)


def test_what_is_written_in_parts_fills_each_and_goes_alone_if_it_is_too_large() -> None:
    assert parts([3, 3, 4, 2, 9, 1, 5], int, 6) == [[3, 3], [4, 2], [9], [1, 5]]

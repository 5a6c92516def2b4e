"""P3: a worker that stood still past its lease cannot overwrite what another one has stored meanwhile."""

import signal
import time
from collections import Counter

import pytest

from tests.processes import wait_for
from tests.reliability.conftest import Report
from tests.reliability.jobs import check_answer, check_ended_once
from tests.reliability.rig import LEASE_S, Stack, once

MODEL = "paused"
NUM_JOBS = 8
NUM_TOKENS = 60


def test_p3_a_paused_worker_overwrites_nothing(stack: Stack, is_full: bool, report: Report) -> None:
    rounds = 10 if is_full else 1
    stack.dispatcher()
    figures: Counter[str] = Counter()
    for number in range(rounds):
        figures.update(one_round(stack, f"{MODEL}-{number}"))
    report(
        "P3",
        seed=0,
        rounds=rounds,
        submitted=rounds * NUM_JOBS,
        lease_s=LEASE_S,
        **figures,
    )
    assert figures["stale_writes_refused"] >= rounds


@pytest.mark.full
def test_p3_nor_while_the_newer_attempt_still_runs(stack: Stack) -> None:
    version = stack.register(MODEL)
    stack.dispatcher()
    paused = stack.worker(MODEL, arm=once("finish.before=stop"), pause_s=600).wait_ready()
    (job_id,) = stack.accept([stack.new_job(version, "slowly", NUM_TOKENS)])
    wait_for(paused.is_stopped, "it stands still, its outcome in its hand")
    # With the frames gone there is nothing to go on from; and slower than the paused one will be to write.
    stack.wipe_redis()
    other = stack.worker(MODEL, fake_step_ms=200)
    running = "SELECT epoch FROM jobs WHERE id = :id AND state = 'running' AND crashes = 1 AND NOT is_suspect"
    wait_for(lambda: stack.query(running, id=job_id), "the other worker has it, for good")
    paused.signal(signal.SIGCONT)
    wait_for(lambda: paused.events("stale_finish_refused"), "it went on, and was refused")
    (row,) = stack.query("SELECT state FROM jobs WHERE id = :id", id=job_id)
    assert row.state == "running", "the newer attempt goes on"
    (job,) = stack.wait_ended([job_id])
    check_answer(job, "slowly", NUM_TOKENS)
    check_ended_once(stack, [job_id])
    wait_for(lambda: other.events("job_finished"), "the end is logged, after it was stored")
    assert [event["job_id"] for event in other.events("job_finished")] == [job_id]


def one_round(stack: Stack, model: str) -> dict[str, int]:
    """Stop a worker just before it writes, let another one end its jobs, let it go on; return what came of it."""
    version = stack.register(model)
    paused = stack.worker(model, arm=once("finish.before=stop"), pause_s=600).wait_ready()
    prompts = [f"{model} {number}" for number in range(NUM_JOBS)]
    ids = stack.accept([stack.new_job(version, prompt, NUM_TOKENS) for prompt in prompts])
    wait_for(paused.is_stopped, "it stands still, its outcome in its hand")
    stood_from = time.monotonic()
    other = stack.worker(model)
    # It holds as many as it has slots, all of them past their leases once the other one has ended them.
    ended = stack.wait_ended(ids)
    paused_s = time.monotonic() - stood_from
    paused.signal(signal.SIGCONT)
    wait_for(lambda: paused.events("stale_finish_refused"), "it went on, and was refused")
    for prompt, job in zip(prompts, ended, strict=True):
        check_answer(job, prompt, NUM_TOKENS)
    ends = check_ended_once(stack, ids)
    stopped = [event["job_id"] for event in paused.events("stale_finish_refused")]
    newer = stack.query(
        """
        SELECT ends.epoch, first.worker AS paused, last.worker AS other FROM job_terminal AS ends
        JOIN attempts AS first ON first.job_id = ends.job_id AND first.epoch = 1
        JOIN attempts AS last ON last.job_id = ends.job_id AND last.epoch = ends.epoch
        WHERE ends.job_id = ANY(:ids)
        """,
        ids=stopped,
    )
    assert newer
    assert all(row.epoch > 1 and row.paused != row.other for row in newer), newer
    paused.stop()
    other.stop()
    return {
        "stale_writes_refused": len(stopped),
        "leases_lost": len(paused.events("lease_lost")),
        "stored_of_the_paused_attempt": sum(row.epoch == 1 for row in newer),
        "paused_s": round(paused_s),
        **ends,
    }

"""A step with a bad row: NaN in one, or out of memory because of one. That job fails; its neighbours never notice."""

import pytest

from headrace.store.schema.job_states import JobState
from tests.reliability.jobs import check_answer, check_ended_once
from tests.reliability.rig import Stack

MODEL = "bad-steps"
MARK = "one bad grain"
NUM_NEIGHBOURS = 7
NUM_TOKENS = 60


@pytest.mark.parametrize(
    ("fault", "code"), [("nan", "numerical_error"), pytest.param("oom", "out_of_memory", marks=pytest.mark.full)]
)
def test_a_bad_row_fails_alone(stack: Stack, fault: str, code: str) -> None:
    version = stack.register(MODEL)
    prompts = [f"neighbour {number}" for number in range(NUM_NEIGHBOURS)]
    ids = stack.accept([stack.new_job(version, prompt, NUM_TOKENS) for prompt in prompts])
    (bad,) = stack.accept([stack.new_job(version, f"this is {MARK}", NUM_TOKENS, max_attempts=1)])
    stack.dispatcher()
    worker = stack.worker(MODEL, model_faults=f"{fault}:{MARK}", lease_s=60)
    *neighbours, spoiled = stack.wait_ended([*ids, bad])
    assert spoiled.state is JobState.FAILED
    assert (spoiled.error or {})["code"] == code
    for prompt, job in zip(prompts, neighbours, strict=True):
        # The output without the bad row, token for token.
        check_answer(job, prompt, NUM_TOKENS)
    assert {job.attempt for job in neighbours} == {1}, "nobody else paid with an attempt"
    check_ended_once(stack, [*ids, bad])
    assert worker.exits == []

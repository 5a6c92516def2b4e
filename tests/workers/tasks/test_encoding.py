"""The outcome of an encode request that the engine ended."""

import pytest

from models.engine.requests import EncodeOutput, FinishReason
from store.jobs.claims import Claim, Finish
from store.schema.job_states import JobState
from workers.tasks.encoding import completed

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

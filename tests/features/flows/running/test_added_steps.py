"""The worker's part of steps that the end of a step adds: who is asked, when, and with what bound."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from headrace.features.flows.running.step_inputs import FilledSteps, StepInputs
from headrace.features.flows.store.added import Added, AddedStep
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.payloads.step_payload import THEN
from headrace.store.schema.job_states import JobState
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.outcome import Retry

CLAIM = Claim("job_1", "tnt_1", 1, 1, 1, "tiny", 1, {}, 1, None, 0.0, 3, parent_id="job_0", step="only")
DONE = Finish("job_1", 1, JobState.SUCCEEDED, {"text": "call it"}, None, None)
MORE = Added((AddedStep("only:1", "generate", "tiny", 1, {}, 1, 1, ("only",)),))


class Ended:
    """A task that answers at once; it must not see what follows."""

    def __init__(self, verdict: Finish | Retry) -> None:
        self._verdict = verdict

    def compute(self, attempt: Attempt) -> Finish | Retry:
        assert THEN not in attempt.claim.payload
        return self._verdict


def once(claim: Claim, then: Mapping[str, Any], finish: Finish) -> Finish:
    """Add a step if the output says so."""
    return replace(finish, added=MORE) if (finish.output or {})["text"] == then["word"] else finish


def run(verdict: Finish | Retry, then: dict[str, str] | None) -> Finish | Retry:
    claim = replace(CLAIM, payload={"input": {}, **({} if then is None else {THEN: then})})
    work = FilledSteps(StepInputs(cast(Any, None)), most_steps=5, kinds={"once": once})
    return work.compute(Attempt(claim, 0.0, None, 0.0), Ended(verdict).compute)


@pytest.mark.parametrize(
    ("verdict", "then", "expected"),
    [
        (DONE, {"kind": "once", "word": "call it"}, replace(MORE, most_steps=5)),
        (DONE, {"kind": "once", "word": "leave it"}, None),
        (DONE, None, None),
        (replace(DONE, state=JobState.CANCELLED), {"kind": "once", "word": "call it"}, None),
    ],
)
def test_a_step_that_succeeded_adds_what_its_kind_says(
    verdict: Finish, then: dict[str, str] | None, expected: Added | None
) -> None:
    assert run(verdict, then) == replace(verdict, added=expected)


def test_a_retry_adds_nothing_and_an_unknown_kind_is_refused() -> None:
    retry = Retry("handed_back", "later")
    assert run(retry, {"kind": "unknown"}) is retry
    with pytest.raises(InvalidRequest) as refused:
        run(DONE, {"kind": "unknown"})
    assert refused.value.code == "invalid_payload"

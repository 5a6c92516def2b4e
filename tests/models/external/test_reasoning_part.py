"""A request with bounds of its reasoning is sent to a server in parts."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.models.engine.reasoning import ReasoningTokens
from headrace.models.engine.requests import EngineRequest, Grammar, SamplingParams
from headrace.models.engine.sequence import SequenceState
from headrace.models.external.reasoning_part import SentPart, next_part, reasoning_part
from headrace.models.external.upstream import UpstreamRequest
from tests.models.engine.rig import Bytes

MARKS = ReasoningTokens((1,), (2, 3), is_open=True, budget=5)
GRAMMAR = Grammar("regex", "a")


def state_of(output: tuple[int, ...] = (), marks: ReasoningTokens | None = MARKS, **sampling: Any) -> SequenceState:
    request = EngineRequest("r", (9,), SamplingParams(**({"max_tokens": 40} | sampling)), reasoning=marks)
    state = SequenceState(request, Bytes(), frozenset({256}), now=0.0)
    for token in output:
        state.add(token, 0.0)
    return state


def test_a_request_with_bounds_is_sent_in_parts_until_its_answer() -> None:
    assert next_part(None, state_of(marks=None)) is None
    assert next_part(None, state_of(marks=replace(MARKS, budget=None))) is None, "nothing is bound"
    first = next_part(None, state_of())
    assert first == SentPart(1, is_last=False)
    assert next_part(first, state_of((50,))) == SentPart(2, is_last=False)
    assert next_part(first, state_of((50, 2, 3))) == SentPart(2, is_last=True)
    assert next_part(None, state_of((50, 2, 3))) is None, "an attempt that goes on in the answer"


@pytest.mark.parametrize(
    ("output", "marks", "sampling", "max_tokens", "bias"),
    [
        ((), MARKS, {}, 5, None),
        ((50, 51), MARKS, {}, 3, None),
        ((), replace(MARKS, budget=None), {"grammar": GRAMMAR}, 40, {256: -100.0}),
        ((), replace(MARKS, budget=90), {}, 40, None),
        ((), replace(MARKS, is_open=False), {}, 6, None),
        ((), MARKS, {"grammar": GRAMMAR, "logit_bias": {7: 1.0}}, 5, {7: 1.0, 256: -100.0}),
        ((), MARKS, {"logit_bias": {7: 1.0}}, 5, {7: 1.0}),
    ],
)
def test_the_reasoning_ends_with_its_mark_or_its_budget(
    output: tuple[int, ...],
    marks: ReasoningTokens,
    sampling: dict[str, Any],
    max_tokens: int,
    bias: dict[int, float] | None,
) -> None:
    state = state_of(output, marks, stop_token_ids=(70,), min_tokens=3, **sampling)
    whole = UpstreamRequest("r", "m", (9,), state.request.sampling, stop_token_ids=(70, 256), priority=1)
    expected = SamplingParams(max_tokens, logit_bias=bias)
    assert reasoning_part(whole, state) == replace(whole, sampling=expected, stop_token_ids=(256, 3))
    assert reasoning_part(whole, state_of(marks=None)) is whole

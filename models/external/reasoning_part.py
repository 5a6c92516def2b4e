"""The part of a request before its answer, for servers that know no bounds of reasoning.

part 1: the reasoning, up to its end or its budget ──▶ forced tokens ──▶ part 2: the answer, with its grammar
"""

from dataclasses import dataclass, replace

from headrace.models.engine.sequence import SequenceState
from headrace.models.external.upstream import UpstreamRequest

_NEVER = -100.0  # the bias of a token that must not come


@dataclass(frozen=True, slots=True)
class SentPart:
    """The part of a request that is inside the server. The answer is the last one."""

    number: int
    is_last: bool


def next_part(before: SentPart | None, state: SequenceState) -> SentPart | None:
    """Return what is sent after ``before``. None: the request is sent as a whole."""
    is_last = state.is_answering or not state.request.is_bound_in_reasoning
    if before is None and is_last:
        return None
    return SentPart(1 if before is None else before.number + 1, is_last)


def reasoning_part(request: UpstreamRequest, state: SequenceState) -> UpstreamRequest:
    """Return the part of ``request`` that ends with the closing mark or with the budget."""
    marks, tracker, sampling = state.request.reasoning, state.reasoning, request.sampling
    if marks is None or tracker is None:
        return request
    own = sampling.stop_token_ids or ()
    ends = [token for token in request.stop_token_ids if token not in own]
    bias = sampling.logit_bias
    if sampling.grammar is not None:
        bias = {**(bias or {}), **dict.fromkeys(ends, _NEVER)}  # an answer in its form must follow
    left = sampling.max_tokens if tracker.num_left is None else tracker.num_left
    sampling = replace(
        sampling,
        max_tokens=min(sampling.max_tokens, left),
        min_tokens=None,
        stop_token_ids=None,
        grammar=None,
        logit_bias=bias,
    )
    return replace(request, sampling=sampling, stop_token_ids=(*ends, marks.closing[-1]))

"""The bounds of reasoning: the tokens that are forced before the answer, and no end before it where a grammar follows.

Keeps the state of a request until ``forget``. A lost state is built again from the output.
"""

from collections.abc import Collection, Sequence

import torch

from headrace.models.engine.reasoning import ReasoningTracker
from headrace.models.engine.requests import RequestId
from headrace.models.sampling.sample_positions import SamplePosition


class ReasoningBounds:
    """``eos_token_ids`` end a sequence."""

    def __init__(self, eos_token_ids: Collection[int]) -> None:
        self._eos = tuple(eos_token_ids)
        self._trackers: dict[RequestId, ReasoningTracker] = {}

    def __len__(self) -> int:
        return len(self._trackers)

    def forget(self, request_id: RequestId) -> None:
        """Drop the state of a request."""
        self._trackers.pop(request_id, None)

    def answer_starts(self, positions: Sequence[SamplePosition]) -> list[int | None]:
        """Return for each position the number of output tokens before the answer; None if it has not begun.

        It is 0 for requests whose reasoning has no bounds. The others have no drafts before the answer.
        """
        return [self._answer_start(position) for position in positions]

    def restrict_(self, logits: torch.Tensor, indices: Sequence[int], positions: Sequence[SamplePosition]) -> None:
        """Force tokens and rule out ends in the rows ``indices`` of logits (n, vocab), before the answer, in place."""
        for index, position in zip(indices, positions, strict=True):
            forced = self._trackers[position.row.request.id].forced
            if forced is not None:
                logits[index] = -torch.inf
                logits[index, forced] = 0
            elif position.row.request.sampling.grammar is not None:
                ends = [token for token in self._eos if token < logits.shape[1]]
                logits[index, ends] = -torch.inf

    def _answer_start(self, position: SamplePosition) -> int | None:
        request = position.row.request
        if request.reasoning is None or not request.is_bound_in_reasoning:
            return 0
        tracker = self._trackers.get(request.id)
        if tracker is None:
            tracker = self._trackers[request.id] = ReasoningTracker(request.reasoning)
        tracker.follow(position.row.output)
        return tracker.answer_at

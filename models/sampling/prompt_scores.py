"""The logprobs of a prompt's tokens, collected over the chunks of its prefill.

The logits after a prompt token score the next one. They are computed a few positions at a time, because those of a
whole chunk over a large vocabulary would take gigabytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from headrace.models.engine.requests import RequestId, SampledLogprobs
from headrace.models.engine.runner import Row, Sampled
from headrace.models.sampling.sampler import logprobs_of

POSITIONS = 64


class PromptScores:
    """Keeps the scores of a request until its prefill ends, or ``forget``."""

    def __init__(self) -> None:
        self._scores: dict[RequestId, list[SampledLogprobs]] = {}

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, row: Row, hidden: torch.Tensor, logits_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Score the prompt tokens after those of ``row``, whose hidden states are (tokens, width).

        A row that is computed again, after a failed pass or a preemption, replaces its earlier scores.
        """
        prompt = row.request.prompt
        known = self._scores.setdefault(row.request.id, [])
        del known[row.start :]
        following = prompt[row.start + 1 : row.start + 1 + len(row.tokens)]
        for first in range(0, len(following), POSITIONS):
            tokens = torch.tensor(following[first : first + POSITIONS], device=hidden.device)
            logits = logits_of(hidden[first : first + len(tokens)])
            known += logprobs_of(logits, tokens, [row.request.sampling.logprobs or 0] * len(tokens))

    def given_to(self, sampled: Mapping[RequestId, Sampled]) -> dict[RequestId, Sampled]:
        """Return the tokens of a pass, with the scores of the prompts whose prefill has ended with it."""
        return {
            request_id: replace(one, prompt_logprobs=tuple(self._scores.pop(request_id)))
            if request_id in self._scores
            else one
            for request_id, one in sampled.items()
        }

    def forget(self, request_id: RequestId) -> None:
        """Drop the scores of a request."""
        self._scores.pop(request_id, None)

"""Repetition, presence and frequency penalties on logits, by the tokens of the request so far.

Only the logits of tokens in the text of a request change. So the cost depends on the text, not on the vocabulary. The
counts are on the host and copied to the device once a step. Requests without penalties are not counted.
"""

from collections.abc import Sequence

import torch

from headrace.models.engine.requests import EngineRequest, RequestId
from headrace.models.sampling.sample_positions import SamplePosition


class _TokenCounts:
    """The number of times that each token of one request was generated, and whether it is in the prompt.

    ``tokens``, ``produced`` and ``in_prompt`` have one entry for each distinct token; ``size`` is their number.
    """

    def __init__(self, request: EngineRequest) -> None:
        prompt = dict.fromkeys(request.prompt)
        capacity = len(prompt) + request.sampling.max_tokens
        self.size = len(prompt)
        self.tokens = torch.zeros(capacity, dtype=torch.long)
        self.tokens[: self.size] = torch.tensor(list(prompt))
        self.produced = torch.zeros(capacity)
        self.in_prompt = torch.arange(capacity) < self.size
        self.num_counted = 0
        self._slots = {token: slot for slot, token in enumerate(prompt)}

    def follow(self, output: Sequence[int]) -> None:
        """Count the tokens since the last call."""
        for token in output[self.num_counted :]:
            slot = self._slots.setdefault(token, self.size)
            if slot == self.size:
                self.tokens[slot] = token
                self.size += 1
            self.produced[slot] += 1
        self.num_counted = len(output)

    def after(self, drafts: Sequence[int]) -> "_TokenCounts":
        """Return counts that include ``drafts``."""
        if not drafts:
            return self
        copy = object.__new__(_TokenCounts)
        copy.size, copy.num_counted, copy._slots = self.size, 0, dict(self._slots)
        copy.tokens, copy.produced, copy.in_prompt = self.tokens.clone(), self.produced.clone(), self.in_prompt
        copy.follow(drafts)
        return copy


class Penalties:
    """Applies penalties. Keeps the token counts of a request until ``forget``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counts: dict[RequestId, _TokenCounts] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def forget(self, request_id: RequestId) -> None:
        """Drop the state of a request."""
        self._counts.pop(request_id, None)

    def apply_(self, logits: torch.Tensor, indices: Sequence[int], positions: Sequence[SamplePosition]) -> None:
        """Apply the penalties of ``positions`` to the rows ``indices`` of logits (n, vocab), in place.

        Repetition (Keskar et al. 2019) counts the prompt too. Presence and frequency (OpenAI) count the output only.
        """
        counts = [self._count(position).after(position.drafts) for position in positions]
        sizes = torch.tensor([each.size for each in counts])
        asked = [position.row.request.sampling for position in positions]
        params = [(each.repetition_penalty, each.presence_penalty, each.frequency_penalty) for each in asked]
        repetition, presence, frequency = self._send(torch.tensor(params).repeat_interleave(sizes, dim=0)).unbind(1)
        where = (
            self._send(torch.tensor(indices).repeat_interleave(sizes)),
            self._send(torch.cat([each.tokens[: each.size] for each in counts])),
        )
        produced = self._send(torch.cat([each.produced[: each.size] for each in counts]))
        in_prompt = self._send(torch.cat([each.in_prompt[: each.size] for each in counts]))
        found = logits[where]
        repeated = torch.where(found < 0, found * repetition, found / repetition)
        found = torch.where(in_prompt | (produced > 0), repeated, found)
        logits[where] = found - presence * (produced > 0) - frequency * produced

    def _count(self, position: SamplePosition) -> _TokenCounts:
        row = position.row
        counts = self._counts.get(row.request.id)
        if counts is None or counts.num_counted > len(row.output):
            counts = self._counts[row.request.id] = _TokenCounts(row.request)
        counts.follow(row.output)
        return counts

    def _send(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._device, non_blocking=True)

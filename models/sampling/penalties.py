"""Repetition, presence and frequency penalties: logits that depend on the tokens so far.

Only the logits of tokens that a request has seen are touched, so the cost grows with its text and not with the
vocabulary. The counts stay on the host and go to the device in one piece a step; requests without penalties are not
counted.
"""

from collections.abc import Sequence

import torch

from models.engine.requests import EngineRequest, RequestId
from models.sampling.sample_positions import Place


class _Counts:
    """How often each token of one request's text was produced, and whether it stood in the prompt.

    ``tokens``, ``produced`` and ``in_prompt`` have one entry for each different token, ``size`` of them.
    """

    def __init__(self, request: EngineRequest) -> None:
        prompt = dict.fromkeys(request.prompt)
        room = len(prompt) + request.sampling.max_tokens
        self.size = len(prompt)
        self.tokens = torch.zeros(room, dtype=torch.long)
        self.tokens[: self.size] = torch.tensor(list(prompt))
        self.produced = torch.zeros(room)
        self.in_prompt = torch.arange(room) < self.size
        self.num_counted = 0
        self._slots = {token: slot for slot, token in enumerate(prompt)}

    def follow(self, output: Sequence[int]) -> None:
        """Count the tokens that are new since the last step."""
        for token in output[self.num_counted :]:
            slot = self._slots.setdefault(token, self.size)
            if slot == self.size:
                self.tokens[slot] = token
                self.size += 1
            self.produced[slot] += 1
        self.num_counted = len(output)

    def after(self, drafts: Sequence[int]) -> "_Counts":
        """Return the counts if ``drafts`` are counted too."""
        if not drafts:
            return self
        copy = object.__new__(_Counts)
        copy.size, copy.num_counted, copy._slots = self.size, 0, dict(self._slots)
        copy.tokens, copy.produced, copy.in_prompt = self.tokens.clone(), self.produced.clone(), self.in_prompt
        copy.follow(drafts)
        return copy


class Penalties:
    """Applies penalties. Keeps token counts until they are forgotten."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counts: dict[RequestId, _Counts] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def forget(self, request_id: RequestId) -> None:
        """Drop what is kept for a request."""
        self._counts.pop(request_id, None)

    def apply_(self, logits: torch.Tensor, indices: Sequence[int], places: Sequence[Place]) -> None:
        """Change the rows ``indices`` of logits (n, vocab) as their ``places`` ask, all of which have penalties.

        Repetition (Keskar et al. 2019) counts the prompt; presence and frequency (OpenAI) count produced tokens only.
        """
        counts = [self._count(place).after(place.drafts) for place in places]
        sizes = torch.tensor([each.size for each in counts])
        asked = [place.row.request.sampling for place in places]
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

    def _count(self, place: Place) -> _Counts:
        row = place.row
        counts = self._counts.get(row.request.id)
        if counts is None or counts.num_counted > len(row.output):
            counts = self._counts[row.request.id] = _Counts(row.request)
        counts.follow(row.output)
        return counts

    def _send(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._device, non_blocking=True)

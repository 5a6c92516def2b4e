"""Repetition, presence and frequency penalties: logits that depend on the tokens so far.

Keeps the counts of each request that has penalties, and nothing for the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from models.draws import column
from models.engine.requests import SamplingParams
from models.engine.runner import Row
from models.places import Place


@dataclass(slots=True)
class _Counts:
    """What a request's penalties need: how often each token was produced, and whether it stood in the prompt."""

    produced: torch.Tensor
    in_prompt: torch.Tensor
    num_counted: int = field(default=0)

    def follow(self, output: Sequence[int]) -> None:
        """Count the tokens that are new since the last step."""
        _add(self.produced, output[self.num_counted :])
        self.num_counted = len(output)

    def after(self, drafts: Sequence[int]) -> torch.Tensor:
        """Return how often each token was produced if ``drafts`` are counted too."""
        return _add(self.produced.clone(), drafts) if drafts else self.produced


def _add(counts: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    new = torch.tensor(list(tokens), dtype=torch.long, device=counts.device)
    return counts.index_add_(0, new, torch.ones_like(new, dtype=counts.dtype))


class Penalties:
    """Applies penalties. Keeps token counts until they are forgotten."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._counts: dict[str, _Counts] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def forget(self, request_id: str) -> None:
        """Drop what is kept for a request."""
        self._counts.pop(request_id, None)

    def apply(self, logits: torch.Tensor, places: Sequence[Place]) -> torch.Tensor:
        """Return logits (places, vocab) with the penalties of the places' requests, all of which have some."""
        counts = [self._count(place.row) for place in places]
        return penalised(
            logits,
            produced=torch.stack([count.after(place.drafts) for count, place in zip(counts, places, strict=True)]),
            in_prompt=torch.stack([count.in_prompt for count in counts]),
            params=[place.row.request.sampling for place in places],
        )

    def _count(self, row: Row) -> _Counts:
        counts = self._counts.get(row.request.id)
        if counts is None or counts.num_counted > len(row.output):
            in_prompt = torch.zeros(self._vocab_size, dtype=torch.bool)
            in_prompt[torch.tensor(row.request.prompt)] = True
            produced = torch.zeros(self._vocab_size, device=self._device)
            counts = self._counts[row.request.id] = _Counts(produced, in_prompt.to(self._device))
        counts.follow(row.output)
        return counts


def penalised(
    logits: torch.Tensor, *, produced: torch.Tensor, in_prompt: torch.Tensor, params: Sequence[SamplingParams]
) -> torch.Tensor:
    """Return logits with each row's penalties applied; all tensors are (rows, vocab).

    Repetition (Keskar et al. 2019) counts the prompt; presence and frequency (OpenAI) count produced tokens only.
    """
    repetition = column([each.repetition_penalty for each in params], logits)
    repeated = torch.where(logits < 0, logits * repetition, logits / repetition)
    result = torch.where(in_prompt | (produced > 0), repeated, logits)
    presence = column([each.presence_penalty for each in params], logits)
    frequency = column([each.frequency_penalty for each in params], logits)
    return result - presence * (produced > 0) - frequency * produced

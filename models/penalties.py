"""Repetition, presence and frequency penalties: logits that depend on the tokens so far.

Keeps the counts of each request that has penalties, and nothing for the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from models.draws import column
from models.engine.requests import SamplingParams
from models.engine.runner import Row


@dataclass(slots=True)
class _Counts:
    """What a request's penalties need: how often each token was produced, and whether it stood in the prompt."""

    produced: torch.Tensor
    in_prompt: torch.Tensor
    num_counted: int = field(default=0)

    def follow(self, output: Sequence[int]) -> None:
        """Count the tokens that are new since the last step."""
        new = torch.tensor(list(output[self.num_counted :]), dtype=torch.long, device=self.produced.device)
        self.produced.index_add_(0, new, torch.ones_like(new, dtype=self.produced.dtype))
        self.num_counted = len(output)


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

    def apply(self, logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Return logits (rows, vocab) with the penalties of ``rows``, all of which have some."""
        counts = [self._count(row) for row in rows]
        return penalised(
            logits,
            produced=torch.stack([count.produced for count in counts]),
            in_prompt=torch.stack([count.in_prompt for count in counts]),
            params=[row.request.sampling for row in rows],
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

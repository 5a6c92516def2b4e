"""From logits to the next token of each row, for the whole batch at once.

A row's token depends on its logits, its request and how many tokens it has, never on its batch mates. Order:
repetition, presence and frequency penalties, then the likeliest token, or a draw by temperature, top-k and top-p.
Nothing reads the vocabulary twice for a row that is greedy and has no penalties.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from models.draws import draw, number
from models.engine.requests import TokenLogprobs
from models.engine.runner import Row
from models.logprobs import logprobs_of
from models.penalties import Penalties

_CHUNK = 512  # logits of which one vectorised pass keeps only the maximum


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen token of each row, (rows,), and whether its logits were sound; the token of one that is not is any.

    ``logprobs`` are there for the rows that ask, by their index.
    """

    tokens: torch.Tensor
    is_sound: torch.Tensor
    logprobs: Mapping[int, TokenLogprobs]


class Sampler:
    """Chooses tokens. Keeps what penalties need to know until it is forgotten."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._penalties = Penalties(vocab_size, device)

    def forget(self, request_id: str) -> None:
        """Drop what is kept for a request."""
        self._penalties.forget(request_id)

    def sample(self, logits: torch.Tensor, rows: Sequence[Row]) -> Choice:
        """Choose from the model's float32 ``logits`` (rows, vocab), which may be changed.

        A row is sound if its highest logit is a finite number: a NaN anywhere is passed on by the maximum, and a
        single minus infinity is a token that the model rules out.
        """
        highest, tokens = highest_of(logits)
        asking = [index for index, row in enumerate(rows) if row.request.sampling.logprobs is not None]
        raw = logits[asking] if asking else logits
        penalised = [index for index, row in enumerate(rows) if row.request.sampling.has_penalties]
        if penalised:
            picked = torch.tensor(penalised, device=self._device)
            changed = self._penalties.apply(logits[picked], [rows[index] for index in penalised])
            logits[picked] = changed
            tokens[picked] = highest_of(changed)[1]
        drawn = [index for index, row in enumerate(rows) if row.request.sampling.temperature > 0]
        if drawn:
            picked = torch.tensor(drawn, device=self._device)
            tokens[picked] = self._draw(logits[picked], [rows[index] for index in drawn])
        found = logprobs_of(raw, tokens[asking], [_num_top(rows[index]) for index in asking]) if asking else []
        return Choice(tokens, highest.isfinite(), dict(zip(asking, found, strict=True)))

    @staticmethod
    def _draw(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        params = [row.request.sampling for row in rows]
        return draw(logits, params, [number(row.request.sampling.seed, len(row.output)) for row in rows])


def _num_top(row: Row) -> int:
    return row.request.sampling.logprobs or 0


def highest_of(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the highest value of each row, NaN if there is one, and the first token that has it, both (rows,).

    On the CPU a maximum with its index is an order slower than one without, so the index is looked for in the one
    chunk that holds the maximum.
    """
    vocab = logits.shape[1]
    if logits.device.type != "cpu" or vocab < 2 * _CHUNK:
        highest, tokens = logits.max(dim=-1)
        return highest, tokens
    whole = vocab - vocab % _CHUNK
    by_chunk = logits[:, :whole].view(len(logits), -1, _CHUNK).amax(dim=-1)
    if whole < vocab:
        by_chunk = torch.cat((by_chunk, logits[:, whole:].amax(dim=-1, keepdim=True)), dim=1)
    highest, chunk = by_chunk.max(dim=-1)
    # Beyond the vocabulary the last token is looked at again, which never comes first.
    inside = (chunk[:, None] * _CHUNK + torch.arange(_CHUNK)).clamp_(max=vocab - 1)
    return highest, chunk * _CHUNK + logits.gather(1, inside).argmax(dim=-1)

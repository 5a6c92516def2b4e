"""From logits to the next token of each row, for the whole batch at once.

A row's token depends on its logits, its request and how many tokens it has, never on its batch mates: the n-th draw of
a seeded request is one number made from the seed and n alone, and it picks from the row's own distribution by inverse
transform. Order: repetition, presence and frequency penalties, temperature, top-k, top-p.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from models.engine.requests import SamplingParams
from models.engine.runner import Row

_CANDIDATES = 1024  # on the CPU, top-k and top-p look at this many tokens before they sort the whole vocabulary
_BITS = 53  # what a float64 holds exactly


def uniform(seed: int, n: int) -> float:
    """Return the n-th number in [0, 1) of a seed: a hash of both, so that no draw depends on an earlier one."""
    digest = hashlib.blake2b(seed.to_bytes(8, "big") + n.to_bytes(8, "big"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS)


def _draw(row: Row) -> float:
    seed = row.request.sampling.seed
    return secrets.randbits(_BITS) / (1 << _BITS) if seed is None else uniform(seed, len(row.output))


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


class Sampler:
    """Chooses tokens. Keeps token counts for requests with penalties until they are forgotten."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._counts: dict[str, _Counts] = {}

    def forget(self, request_id: str) -> None:
        """Drop what is kept for a request."""
        self._counts.pop(request_id, None)

    def sample(self, logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Return the chosen token of each row, (rows,), from float32 ``logits`` (rows, vocab), which may be changed."""
        self._penalise(logits, rows)
        tokens = logits.argmax(dim=-1)
        drawn = [index for index, row in enumerate(rows) if row.request.sampling.temperature > 0]
        if drawn:
            chosen = [rows[index] for index in drawn]
            picked = torch.tensor(drawn, device=self._device)
            tokens[picked] = draw(logits[picked], [row.request.sampling for row in chosen], [*map(_draw, chosen)])
        return tokens

    def _penalise(self, logits: torch.Tensor, rows: Sequence[Row]) -> None:
        indices = [index for index, row in enumerate(rows) if row.request.sampling.has_penalties]
        if not indices:
            return
        counts = [self._count(rows[index]) for index in indices]
        picked = torch.tensor(indices, device=self._device)
        logits[picked] = penalised(
            logits[picked],
            produced=torch.stack([count.produced for count in counts]),
            in_prompt=torch.stack([count.in_prompt for count in counts]),
            params=[rows[index].request.sampling for index in indices],
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


def _column(
    params: Sequence[SamplingParams], value: Callable[[SamplingParams], float], like: torch.Tensor
) -> torch.Tensor:
    return torch.tensor([value(each) for each in params], dtype=like.dtype, device=like.device)[:, None]


def penalised(
    logits: torch.Tensor, *, produced: torch.Tensor, in_prompt: torch.Tensor, params: Sequence[SamplingParams]
) -> torch.Tensor:
    """Return logits with each row's penalties applied; all tensors are (rows, vocab).

    Repetition (Keskar et al. 2019) counts the prompt; presence and frequency (OpenAI) count produced tokens only.
    """
    repetition = _column(params, lambda each: each.repetition_penalty, logits)
    repeated = torch.where(logits < 0, logits * repetition, logits / repetition)
    result = torch.where(in_prompt | (produced > 0), repeated, logits)
    presence = _column(params, lambda each: each.presence_penalty, logits)
    frequency = _column(params, lambda each: each.frequency_penalty, logits)
    return result - presence * (produced > 0) - frequency * produced


def draw(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Return one token a row, (rows,), drawn with the row's temperature, top-k and top-p by its number in [0, 1)."""
    temperature = _column(params, lambda each: each.temperature, logits)
    # Shifted first, or a tiny temperature overflows.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    numbers = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
    tokens = torch.empty(len(params), dtype=torch.long, device=logits.device)
    is_cut = [each.top_k > 0 or each.top_p < 1 for each in params]
    whole = [index for index, cut in enumerate(is_cut) if not cut]
    if whole:
        tokens[whole] = _pick(scaled[whole].softmax(dim=-1), numbers[whole])
    some = [index for index, cut in enumerate(is_cut) if cut]
    if some:
        # A device sorts everything rather than wait to learn whether the candidates were enough.
        size = _CANDIDATES if logits.device.type == "cpu" else logits.shape[1]
        tokens[some] = _draw_cut(scaled[some], [params[index] for index in some], numbers[some], size)
    return tokens


def _pick(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return the index in each row where the running share of ``weights`` passes the row's number."""
    running = weights.double().cumsum(dim=-1)
    total = running[:, -1:].contiguous()
    index = torch.searchsorted(running, numbers[:, None] * total, right=True)
    # Rounding may reach the total, beyond which only tokens without weight are left; a row of NaN has no total.
    last = torch.searchsorted(running, total).clamp_(max=weights.shape[1] - 1)
    return torch.minimum(index, last)[:, 0]


def _draw_cut(scaled: torch.Tensor, params: Sequence[SamplingParams], numbers: torch.Tensor, size: int) -> torch.Tensor:
    """Draw from the ``size`` likeliest tokens of each row; rows whose cut reaches beyond them get the whole sorted."""
    vocab = scaled.shape[1]
    top, ids = scaled.topk(min(size, vocab), dim=-1)
    weights, is_enough = _kept(top, scaled, params)
    tokens = ids.gather(1, _pick(weights, numbers)[:, None])[:, 0]
    if size < vocab and not bool(is_enough.all()):
        rest = [index for index, enough in enumerate(is_enough.tolist()) if not enough]
        tokens[rest] = _draw_cut(scaled[rest], [params[index] for index in rest], numbers[rest], vocab)
    return tokens


def _kept(
    top: torch.Tensor, scaled: torch.Tensor, params: Sequence[SamplingParams]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of ``top`` (sorted scores) with top-k and then top-p cut off, and whether ``top`` held enough.

    A token stays if it is among the k likeliest and those before it weigh less than top-p together.
    """
    size, vocab = top.shape[1], scaled.shape[1]
    k = _column(params, lambda each: each.top_k or vocab, scaled)
    share = _column(params, lambda each: each.top_p, scaled)
    within = torch.arange(size, device=top.device) < k
    top = top.double().masked_fill(~within, -torch.inf)
    # The weights add up to one over the tokens that top-k leaves.
    log_total = torch.where(k <= size, top.logsumexp(-1, keepdim=True), scaled.double().logsumexp(-1, keepdim=True))
    weights = (top - log_total).exp()
    running = weights.cumsum(dim=-1)
    kept = running - weights < share
    is_enough = (k[:, 0] <= size) | (k[:, 0] >= vocab) & (running[:, -1] >= share[:, 0])
    return weights * kept, is_enough

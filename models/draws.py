"""Drawing from a row's distribution: temperature, top-k and top-p, by a number that depends on seed and place alone.

The n-th draw of a seeded request is one number made from the seed and n, and it picks from the row's own distribution
by inverse transform: nothing depends on the row's batch mates or on an earlier draw.
"""

import hashlib
import secrets
from collections.abc import Sequence

import torch

from models.engine.requests import SamplingParams

_CANDIDATES = 1024  # on the CPU, top-k and top-p look at this many tokens before they sort the whole vocabulary
_BITS = 53  # what a float64 holds exactly


def uniform(seed: int, n: int) -> float:
    """Return the n-th number in [0, 1) of a seed: a hash of both, so that no draw depends on an earlier one."""
    digest = hashlib.blake2b(seed.to_bytes(8, "big") + n.to_bytes(8, "big"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS)


def number(seed: int | None, n: int) -> float:
    """Return the n-th number of a seed, or any number without one."""
    return secrets.randbits(_BITS) / (1 << _BITS) if seed is None else uniform(seed, n)


def column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Return one value a row, (rows, 1), to be combined with ``like`` (rows, anything)."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def draw(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Return one token a row, (rows,), drawn with the row's temperature, top-k and top-p by its number in [0, 1)."""
    temperature = column([each.temperature for each in params], logits)
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
    k = column([each.top_k or vocab for each in params], scaled)
    share = column([each.top_p for each in params], scaled)
    within = torch.arange(size, device=top.device) < k
    top = top.double().masked_fill(~within, -torch.inf)
    # The weights add up to one over the tokens that top-k leaves.
    log_total = torch.where(k <= size, top.logsumexp(-1, keepdim=True), scaled.double().logsumexp(-1, keepdim=True))
    weights = (top - log_total).exp()
    running = weights.cumsum(dim=-1)
    kept = running - weights < share
    is_enough = (k[:, 0] <= size) | (k[:, 0] >= vocab) & (running[:, -1] >= share[:, 0])
    return weights * kept, is_enough

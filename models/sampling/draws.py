"""Drawing from a row's distribution: temperature, top-k and top-p, by a number that depends on seed and place alone.

The n-th draw of a seeded request is one number made from the seed and n, and it picks from the row's own distribution
by inverse transform: nothing depends on the row's batch mates or on an earlier draw.
"""

import hashlib
import secrets
from collections.abc import Sequence

import torch

from models.engine.requests import SamplingParams
from models.sampling.vocabulary_chunks import CHUNK, inside, reduced, rows_of

_CANDIDATES = (128, 1024)  # on the CPU, top-k and top-p look at so many tokens before they sort the whole vocabulary
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
    weights = (logits - logits.amax(dim=-1, keepdim=True)).div_(temperature).exp_()
    by_chunk = reduced(weights, _sum)
    numbers = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
    tokens = torch.empty(len(params), dtype=torch.long, device=logits.device)
    is_cut = [each.top_k > 0 or each.top_p < 1 for each in params]
    whole = [index for index, cut in enumerate(is_cut) if not cut]
    if whole:
        tokens[whole] = _pick_whole(rows_of(weights, whole), rows_of(by_chunk, whole), numbers[whole])
    some = [index for index, cut in enumerate(is_cut) if cut]
    if some:
        totals = by_chunk[some].sum(dim=-1, keepdim=True)
        tokens[some] = _draw_cut(
            rows_of(weights, some), totals, [params[index] for index in some], numbers[some], _sizes(logits)
        )
    return tokens


def _sizes(logits: torch.Tensor) -> Sequence[int]:
    """Return how many of the likeliest tokens are looked at first, and then if that was not enough.

    A device sorts everything rather than wait to learn whether it was.
    """
    vocab = logits.shape[1]
    return (*(size for size in _CANDIDATES if size < vocab), vocab) if logits.device.type == "cpu" else (vocab,)


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Add up a chunk: in float32, whose rounding here is far below what a draw can show, and five times as fast."""
    return values.sum(dim=-1).double()


def _pick(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return the index in each row where the running share of ``weights`` passes the row's number."""
    running = weights.cumsum(dim=-1)
    return _passed(running, numbers * running[:, -1])


def _passed(running: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the first index in each row of running sums that lies beyond its target, (rows,)."""
    total = running[:, -1:].contiguous()
    index = torch.searchsorted(running, targets[:, None], right=True)
    # Rounding may reach the total, beyond which only tokens without weight are left; a row of NaN has no total.
    last = torch.searchsorted(running, total).clamp_(max=running.shape[1] - 1)
    return torch.minimum(index, last)[:, 0]


def _pick_whole(weights: torch.Tensor, by_chunk: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """``_pick`` from the whole vocabulary, in two steps: which chunk, and which of its tokens."""
    running = by_chunk.cumsum(dim=-1)
    targets = numbers * running[:, -1]
    chunk = _passed(running, targets)
    before = running.gather(1, chunk[:, None]) - by_chunk.gather(1, chunk[:, None])
    rest = (targets - before[:, 0]).clamp_(min=0)
    index = _passed(inside(weights, chunk, 0).double().cumsum(dim=-1), rest)
    return (chunk * CHUNK + index).clamp_(max=weights.shape[1] - 1)  # a row of NaN may point anywhere


def _draw_cut(
    weights: torch.Tensor,
    totals: torch.Tensor,
    params: Sequence[SamplingParams],
    numbers: torch.Tensor,
    sizes: Sequence[int],
) -> torch.Tensor:
    """Draw from the ``sizes[0]`` likeliest tokens of each row; rows whose cut reaches beyond them get the next size."""
    size = sizes[0]
    top, ids = weights.topk(size, dim=-1)
    kept, is_enough = _kept(top.double(), totals, params, weights.shape[1])
    tokens = ids.gather(1, _pick(kept, numbers)[:, None])[:, 0]
    if len(sizes) > 1 and not bool(is_enough.all()):
        rest = [index for index, enough in enumerate(is_enough.tolist()) if not enough]
        tokens[rest] = _draw_cut(
            weights[rest], totals[rest], [params[index] for index in rest], numbers[rest], sizes[1:]
        )
    return tokens


def _kept(
    top: torch.Tensor, totals: torch.Tensor, params: Sequence[SamplingParams], vocab: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of ``top`` (sorted) with top-k and then top-p cut off, and whether ``top`` held enough.

    A token stays if it is among the k likeliest and those before it weigh less than top-p together. ``totals``
    (rows, 1) are what all tokens weigh.
    """
    size = top.shape[1]
    k = column([each.top_k or vocab for each in params], top)
    share = column([each.top_p for each in params], top)
    top = top.masked_fill(torch.arange(size, device=top.device) >= k, 0)
    # The weights add up to one over the tokens that top-k leaves.
    weights = top / torch.where(k <= size, top.sum(dim=-1, keepdim=True), totals)
    running = weights.cumsum(dim=-1)
    kept = running - weights < share
    is_enough = (k[:, 0] <= size) | (k[:, 0] >= vocab) & (running[:, -1] >= share[:, 0])
    return weights * kept, is_enough

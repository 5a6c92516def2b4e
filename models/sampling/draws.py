"""Random sampling with temperature, top-k and top-p.

The n-th token of a seeded request uses a random number that depends only on the seed and n. The number selects from the
distribution of the row by inverse transform sampling. So a token never depends on other rows or on earlier draws.
"""

import hashlib
import secrets
from collections.abc import Sequence

import torch

from models.engine.requests import SamplingParams
from models.sampling.vocabulary_chunks import CHUNK, inside, reduced, rows_of

_CANDIDATES = (128, 1024)  # on the CPU, top-k and top-p try this many tokens before the whole vocabulary
_BITS = 53  # the precision of a float64


def uniform(seed: int, n: int) -> float:
    """Return the n-th random number of a seed in [0, 1): a hash of both."""
    digest = hashlib.blake2b(seed.to_bytes(8, "big") + n.to_bytes(8, "big"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS)


def number(seed: int | None, n: int) -> float:
    """Return the n-th random number of a seed, or an unseeded one."""
    return secrets.randbits(_BITS) / (1 << _BITS) if seed is None else uniform(seed, n)


def column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Return one value a row, (rows, 1), with the type and device of ``like``."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def draw(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Sample one token a row, (rows,), with the temperature, top-k, top-p and random number of the row."""
    temperature = column([each.temperature for each in params], logits)
    # Subtract the maximum first, so that a tiny temperature does not overflow.
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
    """Return the numbers of most likely tokens to try, in order.

    A GPU sorts the whole vocabulary, because a check would wait for the device.
    """
    vocab = logits.shape[1]
    return (*(size for size in _CANDIDATES if size < vocab), vocab) if logits.device.type == "cpu" else (vocab,)


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Sum a chunk in float32: five times as fast as float64, and the rounding error does not matter here."""
    return values.sum(dim=-1).double()


def _pick(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return the index in each row where the cumulative share of ``weights`` exceeds the number of the row."""
    running = weights.cumsum(dim=-1)
    return _passed(running, numbers * running[:, -1])


def _passed(running: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the first index in each row of cumulative sums that exceeds its target, (rows,)."""
    total = running[:, -1:].contiguous()
    index = torch.searchsorted(running, targets[:, None], right=True)
    # Rounding may reach the total, and all later tokens have no weight. A row of NaN has no total.
    last = torch.searchsorted(running, total).clamp_(max=running.shape[1] - 1)
    return torch.minimum(index, last)[:, 0]


def _pick_whole(weights: torch.Tensor, by_chunk: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """As ``_pick``, from the whole vocabulary in two steps: the chunk, then the token in it."""
    running = by_chunk.cumsum(dim=-1)
    targets = numbers * running[:, -1]
    chunk = _passed(running, targets)
    before = running.gather(1, chunk[:, None]) - by_chunk.gather(1, chunk[:, None])
    rest = (targets - before[:, 0]).clamp_(min=0)
    index = _passed(inside(weights, chunk, 0).double().cumsum(dim=-1), rest)
    return (chunk * CHUNK + index).clamp_(max=weights.shape[1] - 1)  # a row of NaN may give any index


def _draw_cut(
    weights: torch.Tensor,
    totals: torch.Tensor,
    params: Sequence[SamplingParams],
    numbers: torch.Tensor,
    sizes: Sequence[int],
) -> torch.Tensor:
    """Sample from the ``sizes[0]`` most likely tokens of each row. Rows that need more tokens get the next size."""
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
    """Apply top-k, then top-p, to ``top`` (sorted weights). Return the weights, and if ``top`` had enough tokens.

    A token stays if it is one of the k most likely and the share of the tokens before it is below top-p. ``totals``
    (rows, 1) are the sums over the whole vocabulary.
    """
    size = top.shape[1]
    k = column([each.top_k or vocab for each in params], top)
    share = column([each.top_p for each in params], top)
    top = top.masked_fill(torch.arange(size, device=top.device) >= k, 0)
    # Normalised over the tokens that top-k keeps.
    weights = top / torch.where(k <= size, top.sum(dim=-1, keepdim=True), totals)
    running = weights.cumsum(dim=-1)
    kept = running - weights < share
    is_enough = (k[:, 0] <= size) | (k[:, 0] >= vocab) & (running[:, -1] >= share[:, 0])
    return weights * kept, is_enough

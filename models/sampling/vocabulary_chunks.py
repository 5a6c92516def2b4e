"""The vocabulary in chunks: reduce each chunk to one number, choose a chunk, and search only in that chunk.

    | 512 | 512 | ... | rest |   ── reduce ──▶   (rows, chunks)   ── choose ──▶   one chunk of each row, (rows, 512)

On a CPU, a plain sum or maximum is about ten times as fast as a cumulative sum or a maximum with its index.
"""

from collections.abc import Callable, Sequence

import torch

CHUNK = 512


def reduced(values: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Reduce each chunk of values (rows, vocab) with ``reduce`` over the last dimension. Return (rows, chunks)."""
    rows, vocab = values.shape
    whole = vocab - vocab % CHUNK
    parts = [reduce(values[:, :whole].view(rows, -1, CHUNK))] if whole else []
    if whole < vocab:
        parts.append(reduce(values[:, None, whole:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def inside(values: torch.Tensor, chunk: torch.Tensor, filler: float) -> torch.Tensor:
    """Return the values in ``chunk`` (rows,) of each row, (rows, CHUNK), with ``filler`` beyond the vocabulary."""
    members = chunk[:, None] * CHUNK + torch.arange(CHUNK, device=values.device)
    vocab = values.shape[1]
    found = values.gather(1, members.clamp(max=vocab - 1))
    return found if vocab % CHUNK == 0 else found.masked_fill_(members >= vocab, filler)


def rows_of(values: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    """Return the rows ``indices``. ``indices`` must be sorted; if it has all rows, nothing is copied."""
    return values if len(indices) == len(values) else values[indices]

"""Rules for single tokens whatever the text is: ``logit_bias``, and no end before ``min_tokens``.

They depend on the request and the number of tokens so far only, so they are exact after drafts too.
"""

from collections.abc import Collection, Sequence

import torch

from models.sampling.sample_positions import SamplePosition


def add_bias_(logits: torch.Tensor, indices: Sequence[int], positions: Sequence[SamplePosition]) -> None:
    """Add the ``logit_bias`` of ``positions`` to the rows ``indices`` of logits (n, vocab), in place."""
    found = [
        (index, token, bias)
        for index, position in zip(indices, positions, strict=True)
        for token, bias in (position.row.request.sampling.logit_bias or {}).items()
        if token < logits.shape[1]
    ]
    if found:
        rows, tokens, values = zip(*found, strict=True)
        bias = torch.tensor(values, dtype=logits.dtype, device=logits.device)
        logits[_sent(rows, logits), _sent(tokens, logits)] += bias


def forbid_early_ends_(
    logits: torch.Tensor, indices: Sequence[int], positions: Sequence[SamplePosition], eos: Collection[int]
) -> None:
    """Rule out the tokens that end ``positions`` before their ``min_tokens``, in place."""
    found = [
        (index, token)
        for index, position in zip(indices, positions, strict=True)
        if position.number < (position.row.request.sampling.min_tokens or 0)
        for token in {*eos, *(position.row.request.sampling.stop_token_ids or ())}
        if token < logits.shape[1]
    ]
    if found:
        rows, tokens = zip(*found, strict=True)
        logits[_sent(rows, logits), _sent(tokens, logits)] = -torch.inf


def _sent(values: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device)

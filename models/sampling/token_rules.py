"""Rules for tokens: ``logit_bias``, no end before ``min_tokens``, and token sequences that are never sampled.

They depend on the request and its output with the drafts before a position, so they are exact after drafts too.
"""

from collections.abc import Collection, Iterator, Sequence

import torch

from headrace.models.sampling.sample_positions import SamplePosition


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
    _forbid_(logits, found)


def forbid_banned_(logits: torch.Tensor, indices: Sequence[int], positions: Sequence[SamplePosition]) -> None:
    """Rule out the last token of each sequence in ``banned`` whose other tokens end the output, in place."""
    found = [
        (index, token)
        for index, position in zip(indices, positions, strict=True)
        for token in _ends_of_banned(position)
        if token < logits.shape[1]
    ]
    _forbid_(logits, found)


def _ends_of_banned(position: SamplePosition) -> Iterator[int]:
    banned = position.row.request.banned
    if not banned:
        return
    longest = max(map(len, banned)) - 1
    before = (*position.row.output[-longest:], *position.drafts)[-longest:] if longest else ()
    for sequence in banned:
        head = sequence[:-1]
        if not head or before[-len(head) :] == head:
            yield sequence[-1]


def _forbid_(logits: torch.Tensor, found: Sequence[tuple[int, int]]) -> None:
    if found:
        rows, tokens = zip(*found, strict=True)
        logits[_sent(rows, logits), _sent(tokens, logits)] = -torch.inf


def _sent(values: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device)

"""Sampling on a device without waiting for it: one transfer of parameters, and the tokens stay on the device.

For requests whose next token depends on the logits and the parameters alone. Top-k and top-p look at the most likely
tokens only, as on the CPU. If they are too few for a row, ``is_enough`` is False there and its token is not valid: the
caller chooses again, with ``draw`` over the whole vocabulary and the same random number. So the result is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headrace.models.engine.requests import SamplingParams
from headrace.models.sampling.sampler import kept_weights, number, pick, pick_whole, reduced, sum_of

NUM_CANDIDATES = 1024
"""How many of the most likely tokens top-k and top-p look at."""


@dataclass(frozen=True, slots=True)
class SamplingInput:
    """The parameters of one token: those of its request, and its random number (0 without a temperature)."""

    params: SamplingParams
    uniform: float

    @property
    def is_cut(self) -> bool:
        """True if only a part of the vocabulary may be drawn."""
        return self.params.top_k > 0 or self.params.top_p < 1


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The tokens, if the logits had no NaN or infinity, and if the candidates were enough; (rows,) each."""

    tokens: torch.Tensor
    is_sound: torch.Tensor
    is_enough: torch.Tensor


def is_simple(params: SamplingParams) -> bool:
    """Return True if the next token depends on the logits and the parameters alone."""
    return not (
        params.has_penalties or params.has_token_rules or params.grammar is not None or params.logprobs is not None
    )


def sampling_input(params: SamplingParams, n: int) -> SamplingInput:
    """Return the input for the n-th token of a request."""
    return SamplingInput(params, number(params.seed, n) if params.temperature > 0 else 0.0)


def choose(logits: torch.Tensor, inputs: Sequence[SamplingInput], num_candidates: int) -> DeviceChoice:
    """Choose a token for each row of float32 ``logits`` (rows, vocab), which are not changed.

    Top-k and top-p look at ``num_candidates`` tokens.
    """
    vocab = logits.shape[1]
    highest, greedy = logits.max(dim=-1)
    is_sound, always = highest.isfinite(), torch.ones_like(greedy, dtype=torch.bool)
    if all(each.params.temperature == 0 for each in inputs):
        return DeviceChoice(greedy, is_sound, always)
    rows = [(p.params.temperature, p.params.min_p or 0.0, p.params.top_k, p.params.top_p, p.uniform) for p in inputs]
    # From pinned memory, so that the host does not wait.
    given = torch.tensor(rows, dtype=torch.float64, pin_memory=logits.is_cuda)
    temperature, min_p, top_k, top_p, uniforms = given.to(logits.device, non_blocking=True).unbind(1)
    is_drawn = temperature > 0
    divisor = torch.where(is_drawn, temperature, 1.0)[:, None].float()
    weights = (logits - highest[:, None]).div_(divisor).exp_()
    weights.masked_fill_(weights < min_p[:, None].float(), 0)
    by_chunk = reduced(weights, sum_of)
    tokens, is_enough = pick_whole(weights, by_chunk, uniforms), always
    if any(each.is_cut for each in inputs):
        top, ids = weights.topk(min(num_candidates, vocab), dim=-1)
        totals = by_chunk.sum(dim=-1, keepdim=True)
        k = torch.where(top_k > 0, top_k, vocab)[:, None]
        kept, found = kept_weights(top.double(), totals, k, top_p[:, None], vocab)
        is_cut = (top_k > 0) | (top_p < 1)
        tokens = torch.where(is_cut, ids.gather(1, pick(kept, uniforms)[:, None])[:, 0], tokens)
        is_enough = found | ~is_cut | ~is_drawn if top.shape[1] < vocab else always
    return DeviceChoice(torch.where(is_drawn, tokens, greedy), is_sound, is_enough)

"""Logprobs of the sampled token and of the most likely tokens, for requests that ask for them.

They are the log-softmax of the logits of the model, before penalties, masks, temperature, top-k and top-p, as vLLM's
default ("raw") and OpenAI report them.
"""

from collections.abc import Sequence

import torch

from models.engine.requests import SampledLogprobs


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]) -> list[SampledLogprobs]:
    """Return the logprobs of the token and the ``counts`` most likely ones of each row. Logits are (rows, vocab)."""
    log_total = logits.logsumexp(dim=-1, keepdim=True)
    chosen = (logits.gather(1, tokens[:, None]) - log_total)[:, 0].tolist()
    top = logits.topk(min(max(counts), logits.shape[1]), dim=-1)
    ids, values = top.indices.tolist(), (top.values - log_total).tolist()
    return [
        SampledLogprobs(logprob, tuple(row_ids[:count]), tuple(row_values[:count]))
        for logprob, row_ids, row_values, count in zip(chosen, ids, values, counts, strict=True)
    ]

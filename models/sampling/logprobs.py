"""How likely the model finds tokens, for the requests that ask: log-softmax of its own logits, a few of the likeliest.

The logits are the model's, before penalties, masks, temperature and cuts, as vLLM's default ("raw") and OpenAI report
them: what a request asks of the choice does not change what the model thinks.
"""

from collections.abc import Sequence

import torch

from models.engine.requests import SampledLogprobs


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]) -> list[SampledLogprobs]:
    """Return for each row of ``logits`` (rows, vocab) how likely its token (rows,) is, and its ``counts`` likeliest."""
    log_total = logits.logsumexp(dim=-1, keepdim=True)
    chosen = (logits.gather(1, tokens[:, None]) - log_total)[:, 0].tolist()
    top = logits.topk(min(max(counts), logits.shape[1]), dim=-1)
    ids, values = top.indices.tolist(), (top.values - log_total).tolist()
    return [
        SampledLogprobs(logprob, tuple(row_ids[:count]), tuple(row_values[:count]))
        for logprob, row_ids, row_values, count in zip(chosen, ids, values, counts, strict=True)
    ]

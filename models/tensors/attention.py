"""Attention of one layer over the paged KV cache: decode rows in padded groups, prefill chunks one by one.

Grouped-query heads (Ainslie et al. 2023): ``heads / kv_heads`` query heads share one key-value head.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from headrace.models.tensors.kv_cache import KvCache
from headrace.models.tensors.torch_batch import DecodeGroup, PrefillChunk, TorchBatch


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """The attention score of a query and a key: their product times ``scale`` (None: 1 / sqrt(head_dim)).

    ``softcap`` limits the score by a tanh (Gemma 2); None is no limit.
    """

    scale: float | None = None
    softcap: float | None = None


DEFAULT_SCORES = ScoreOptions()


def attend(
    qkv: torch.Tensor,
    num_heads: int,
    batch: TorchBatch,
    cache: KvCache,
    layer: int,
    window: int | None,
    scores: ScoreOptions = DEFAULT_SCORES,
) -> torch.Tensor:
    """Store the keys and values of the pass, and return the attention output, (n, num_heads * head_dim).

    ``qkv`` is (n, num_heads + 2 * kv_heads, head_dim), with rotated queries and keys.
    """
    query = qkv[:, :num_heads]
    cache.write(layer, batch.slots, qkv[:, num_heads:])
    found = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in batch.groups:
        found[group.first : group.last] = _decode(query[group.first : group.last], group, cache, layer, window, scores)
    for chunk in batch.chunks:
        part = qkv[chunk.first : chunk.last]
        found[chunk.first : chunk.last] = _prefill(part, num_heads, chunk, cache, layer, window, scores)
    return found.view(found.shape[0], -1)


def _decode(
    query: torch.Tensor, group: DecodeGroup, cache: KvCache, layer: int, window: int | None, scores: ScoreOptions
) -> torch.Tensor:
    """Attend with one token a row: the query heads that share a key-value head are the rows of one small product."""
    rows, _, head_dim = query.shape
    keys, values = cache.gather(layer, group.blocks, rows)
    shared = query.reshape(rows, keys.shape[1], -1, head_dim)
    return _weigh(shared, keys, values, group.masks[window], scores).reshape(query.shape)


def _prefill(
    qkv: torch.Tensor,
    num_heads: int,
    chunk: PrefillChunk,
    cache: KvCache,
    layer: int,
    window: int | None,
    scores: ScoreOptions,
) -> torch.Tensor:
    query = qkv[:, :num_heads].transpose(0, 1)[None]
    if chunk.start == 0:
        keys, values = qkv[:, num_heads:].transpose(0, 1)[None].chunk(2, dim=1)
    else:
        keys, values = (part[:, :, : chunk.start + qkv.shape[0]] for part in cache.gather(layer, chunk.blocks, 1))
    return _weigh(query, keys, values, chunk.masks[window], scores)[0].transpose(0, 1)


def _weigh(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scores: ScoreOptions
) -> torch.Tensor:
    """Return the values weighted by the softmax of the scores. All are (rows, heads, tokens, head_dim).

    Without a mask, attention is causal.
    """
    shares = query.shape[1] != keys.shape[1]
    if scores.softcap is None:
        return scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None, scale=scores.scale, enable_gqa=shares
        )
    if shares:
        keys, values = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (keys, values))
    if mask is None:
        mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device).tril()
    product = query @ keys.transpose(2, 3) * (scores.scale or 1 / math.sqrt(query.shape[3]))
    capped = (product / scores.softcap).tanh() * scores.softcap
    weights = capped.masked_fill(~mask, -torch.inf).softmax(dim=-1, dtype=torch.float)
    return weights.to(values.dtype) @ values

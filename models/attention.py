"""Attention of one layer over the paged cache: decode rows in padded groups, prefill chunks one by one.

Grouped-query heads (Ainslie et al. 2023): ``heads / kv_heads`` query heads share one key-value head.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

from models.batch import Batch, Chunk, Group
from models.kv_cache import KvCache


def attend(
    qkv: torch.Tensor, num_heads: int, batch: Batch, cache: KvCache, layer: int, span: int | None
) -> torch.Tensor:
    """Store the pass's keys and values, and return what each token's query heads find, (n, num_heads * head_dim).

    ``qkv`` is (n, num_heads + 2 * kv_heads, head_dim): queries and keys already turned by their positions.
    """
    query = qkv[:, :num_heads]
    cache.write(layer, batch.slots, qkv[:, num_heads:])
    found = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in batch.groups:
        found[group.first : group.last] = _decode(query[group.first : group.last], group, cache, layer, span)
    for chunk in batch.chunks:
        found[chunk.first : chunk.last] = _prefill(qkv[chunk.first : chunk.last], num_heads, chunk, cache, layer, span)
    return found.view(found.shape[0], -1)


def _decode(query: torch.Tensor, group: Group, cache: KvCache, layer: int, span: int | None) -> torch.Tensor:
    """One token a row: the query heads that share a key-value head are the rows of one small product."""
    rows, _, head_dim = query.shape
    keys, values = cache.gather(layer, group.blocks, rows)
    shared = query.reshape(rows, keys.shape[1], -1, head_dim)
    found = scaled_dot_product_attention(shared, keys, values, attn_mask=group.masks[span])
    return found.reshape(query.shape)


def _prefill(
    qkv: torch.Tensor, num_heads: int, chunk: Chunk, cache: KvCache, layer: int, span: int | None
) -> torch.Tensor:
    query = qkv[:, :num_heads].transpose(0, 1)[None]
    if chunk.start == 0:
        keys, values = qkv[:, num_heads:].transpose(0, 1)[None].chunk(2, dim=1)
    else:
        keys, values = (part[:, :, : chunk.start + qkv.shape[0]] for part in cache.gather(layer, chunk.blocks, 1))
    mask = chunk.masks[span]
    found = scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=num_heads != keys.shape[1]
    )
    return found[0].transpose(0, 1)

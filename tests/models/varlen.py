"""What ``torch.nn.attention.varlen.varlen_attn`` is documented to do with a block table, slowly and on any device."""

import torch
from torch.nn.functional import scaled_dot_product_attention


def varlen_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """Queries are (n, heads, head_dim), keys and values pools of pages, (pages, page_size, kv_heads, head_dim)."""
    assert cu_seq_k is None
    assert {each.dtype for each in (cu_seq_q, seqused_k, block_table)} == {torch.int32}
    assert enable_gqa or query.shape[1] == key.shape[2]
    assert max_k == block_table.shape[1] * key.shape[1]
    found = torch.empty_like(query, memory_format=torch.contiguous_format)
    for n, used in enumerate(seqused_k.tolist()):
        own = query[cu_seq_q[n] : cu_seq_q[n + 1]].transpose(0, 1)[None]
        assert own.shape[2] <= max_q
        keys, values = (pool[block_table[n].long()].flatten(0, 1)[:used].transpose(0, 1)[None] for pool in (key, value))
        at = torch.arange(used - own.shape[2], used, device=query.device)[:, None]
        context = torch.arange(used, device=query.device)[None]
        seen = context <= at + window_size[1]
        if window_size[0] >= 0:
            seen &= context >= at - window_size[0]
        result = scaled_dot_product_attention(own, keys, values, attn_mask=seen, enable_gqa=enable_gqa)
        found[cu_seq_q[n] : cu_seq_q[n + 1]] = result[0].transpose(0, 1)
    return found

"""The paged KV cache: one tensor a layer, cut into blocks that the scheduler allocates.

::

    layer[block] = | token 0: K heads, V heads | token 1: K heads, V heads | ... block_tokens

Keys and values of a token are adjacent, so that writing a step and gathering the blocks of a request are one operation
each. The scheduler knows which request owns a block. Invariant: every number in the cache is finite. Attention reads a
block beyond the last token of its owner, with a weight of zero, and zero times NaN is NaN. So ``clear`` must erase the
blocks of a failed request before another request gets them.
"""

import torch

from headrace.models.tensors.huge_pages import zeros


def _zeros(num_values: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros. On the CPU, memory is allocated at the first write, so an unused cache costs no memory."""
    if device.type != "cpu":
        return torch.zeros(num_values, dtype=dtype, device=device)
    return zeros(num_values, dtype)


class KvCache:
    """Keys and values of every layer. Sizes: ``num_blocks`` blocks of ``block_tokens`` tokens."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._token_shape = (2 * num_kv_heads, head_dim)
        self._num_kv_heads = num_kv_heads
        token_values = 2 * num_kv_heads * head_dim
        layer_values = num_blocks * block_tokens * token_values
        pool = _zeros(num_layers * layer_values, dtype, device).view(num_layers, layer_values)
        self._by_block = [layer.view(num_blocks, block_tokens * token_values) for layer in pool]
        self._by_slot = [layer.view(num_blocks * block_tokens, *self._token_shape) for layer in pool]

    def write(self, layer: int, slots: torch.Tensor, keys_values: torch.Tensor) -> None:
        """Store (n, 2 * kv_heads, head_dim) at ``slots`` (n,), where slot = block * block_tokens + offset."""
        self._by_slot[layer].index_copy_(0, slots, keys_values)

    def gather(self, layer: int, blocks: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of ``blocks`` (num_rows * width,), each (num_rows, kv_heads, tokens, head_dim).

        The tokens of a row are its ``width`` blocks in order. The result is a copy.
        """
        found = self._by_block[layer].index_select(0, blocks).view(num_rows, -1, *self._token_shape)
        keys, values = found.transpose(1, 2).split(self._num_kv_heads, dim=1)
        return keys, values

    def pages(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return views of all keys and values, each (num_blocks, block_tokens, kv_heads, head_dim)."""
        blocks = self._by_slot[layer].view(self.num_blocks, self.block_tokens, *self._token_shape)
        keys, values = blocks.split(self._num_kv_heads, dim=2)
        return keys, values

    def clear(self, blocks: torch.Tensor) -> None:
        """Set blocks to zero in every layer."""
        for layer in self._by_block:
            layer.index_fill_(0, blocks, 0)

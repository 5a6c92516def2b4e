"""The paged key-value cache: one tensor a layer, cut into blocks that the scheduler hands out.

::

    layer[block] = | token 0: K heads, V heads | token 1: K heads, V heads | ... block_tokens

Keys and values of a token lie side by side, so that writing a step and gathering a request's blocks are one operation
each. Who owns a block is the scheduler's knowledge. Kept here: every number in the pool is finite. A block may be read
past its owner's last token (the mask hides that), and a NaN is not hidden by a weight of zero; so ``clear`` must wipe
what a broken request wrote before its blocks go to another.
"""

import torch

from models.tensors.huge_pages import zeros


def _zeros(num_values: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On the CPU, pages that the system zeroes when they are first used: an idle pool costs no memory."""
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

        The tokens of a row are its ``width`` blocks in order; the result is a copy.
        """
        found = self._by_block[layer].index_select(0, blocks).view(num_rows, -1, *self._token_shape)
        keys, values = found.transpose(1, 2).split(self._num_kv_heads, dim=1)
        return keys, values

    def clear(self, blocks: torch.Tensor) -> None:
        """Wipe blocks in every layer."""
        for layer in self._by_block:
            layer.index_fill_(0, blocks, 0)

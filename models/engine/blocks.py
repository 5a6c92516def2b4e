"""The KV pool's book-keeping: which blocks are free. It knows block numbers, not tensors and not who holds a block.

blocks 0 … num_blocks - 1 = free  ∪  allocated,   free ∩ allocated = ∅
"""

from collections.abc import Iterable


class BlockPool:
    """A free list of KV blocks, each of which holds the keys and values of ``block_tokens`` positions."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(f"a pool needs blocks and tokens in them, not {num_blocks} blocks of {block_tokens}")
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.reset()

    def reset(self) -> None:
        """Make every block free, whoever held it."""
        # The low numbers are used first and most, and stay warm.
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._is_free = bytearray(b"\x01") * self.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold ``num_tokens`` positions."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Take ``num_blocks`` out of the pool, or None (and nothing taken) if there are fewer."""
        if num_blocks > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(num_blocks)]
        for block in taken:
            self._is_free[block] = 0
        return taken

    def free(self, blocks: Iterable[int]) -> None:
        """Put ``blocks`` back. Raises ValueError for a block that is free already: two owners would share it."""
        for block in blocks:
            if self._is_free[block]:
                raise ValueError(f"block {block} is free already")
            self._is_free[block] = 1
            self._free.append(block)

    def check(self) -> None:
        """Raise AssertionError unless the free list and the flags say the same. Slow; for tests and idle times."""
        if sorted(self._free) != [block for block in range(self.num_blocks) if self._is_free[block]]:
            raise AssertionError("the free list does not match the blocks that are flagged as free")

"""The block tables of running requests: allocated, shared with the prefix cache, grown and released.

    seq.blocks = | registered, perhaps shared: read only | being filled | still empty |
                 0                          num_registered     num_cached

A full block is registered in the prefix cache as soon as its keys and values are computed. A request begins with the
cached blocks of its tokens, and adopts blocks that other requests fill before its own prefill gets there. Its last
token is always computed, because the request needs the logits of that token.
"""

from models.engine.kv.block_pool import BlockPool
from models.engine.sequences.sequence import SequenceState


class BlockTables:
    """Manages the block tables of requests that share one pool."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.num_found = 0  # prompt tokens that were in the prefix cache, of all requests

    def num_needed(self, seq: SequenceState) -> int:
        """Return how many free blocks a request needs to begin."""
        found = self._lookup(seq, 0)
        return self._pool.num_cached_of(found) + self._pool.blocks_for(seq.num_tokens) - len(found)

    def allocate(self, seq: SequenceState) -> None:
        """Allocate the blocks of all known tokens. Raises ValueError if fewer are free than ``num_needed``."""
        found = self._lookup(seq, 0)
        self._pool.share(found)
        new = self._pool.allocate(self._pool.blocks_for(seq.num_tokens) - len(found))
        if new is None:
            raise ValueError(f"there is no room for {seq.id}")
        seq.blocks = found + new
        self._skip(seq, len(found))

    def grow(self, seq: SequenceState) -> bool:
        """Allocate the block of the newest token, if it is missing; False if none is free."""
        if self.covers(seq):
            return True
        block = self._pool.allocate(1)
        if block is None:
            return False
        seq.blocks += block
        return True

    def reserve(self, seq: SequenceState, count: int, *, leave_free: int) -> int:
        """Allocate room for up to ``count`` more tokens, but leave ``leave_free`` blocks free; return for how many."""

        def room() -> int:
            return len(seq.blocks) * self._pool.block_tokens - seq.num_tokens

        while room() < count and self._pool.num_free > leave_free:
            seq.blocks += self._pool.allocate(1) or []
        return min(count, room())

    def covers(self, seq: SequenceState) -> bool:
        """Return True if the blocks have a position for each known token."""
        return len(seq.blocks) * self._pool.block_tokens >= seq.num_tokens

    def adopt_cached(self, seq: SequenceState) -> None:
        """Replace blocks that are still to fill by cached ones that other requests have filled meanwhile."""
        done = seq.num_cached // self._pool.block_tokens
        found = self._lookup(seq, done)
        if found:
            end = done + len(found)
            self._pool.share(found)
            self._pool.free(seq.blocks[done:end])
            seq.blocks[done:end] = found
            self._skip(seq, end)

    def note_computed(self, seq: SequenceState, num_tokens: int) -> None:
        """Note that the next ``num_tokens`` tokens are in the KV cache, and register the blocks that are full now."""
        seq.num_cached += num_tokens
        num_full = seq.num_cached // self._pool.block_tokens
        if num_full > seq.num_registered:
            hashes = seq.block_hashes(num_full, self._pool.block_tokens)
            for index in range(seq.num_registered, num_full):
                self._pool.register(seq.blocks[index], hashes[index])
            seq.num_registered = num_full

    def hashes_filled_by(self, seq: SequenceState, num_tokens: int) -> list[bytes]:
        """Return the hashes of the blocks that the next ``num_tokens`` tokens fill."""
        size = self._pool.block_tokens
        return seq.block_hashes((seq.num_cached + num_tokens) // size, size)[seq.num_cached // size :]

    def next_hash(self, seq: SequenceState) -> bytes | None:
        """Return the hash of the block that the request fills next; None if known tokens do not fill it."""
        size = self._pool.block_tokens
        index = seq.num_cached // size
        return seq.block_hashes(index + 1, size)[index] if index < self._num_shareable(seq) else None

    def release(self, seq: SequenceState) -> None:
        """Free a request's blocks."""
        self._pool.free(seq.blocks)
        seq.blocks = []
        seq.num_cached = 0
        seq.num_registered = 0

    def invalidate(self, seq: SequenceState) -> None:
        """Remove a request's blocks from the prefix cache. Other owners of shared blocks keep them."""
        self._pool.invalidate(seq.blocks)

    def _lookup(self, seq: SequenceState, first: int) -> list[int]:
        """Return the cached blocks of the request's tokens from block ``first`` on, up to the first miss."""
        count = self._num_shareable(seq)
        if first >= count:
            return []
        return self._pool.lookup(seq.block_hashes(count, self._pool.block_tokens)[first:])

    def _num_shareable(self, seq: SequenceState) -> int:
        return (seq.num_tokens - 1) // self._pool.block_tokens

    def _skip(self, seq: SequenceState, num_blocks: int) -> None:
        """Continue after the first ``num_blocks`` blocks, which are full and registered."""
        num_tokens = num_blocks * self._pool.block_tokens
        self.num_found += seq.note_found(num_tokens - seq.num_cached)
        seq.num_cached = num_tokens
        seq.num_registered = num_blocks

"""The block tables of running requests: taken, shared, filled and given back. It knows nothing of who runs when.

    live.blocks = | named, perhaps shared: only read | being filled | still empty |
                  0                          num_named      num_cached

A full block is named as soon as its keys and values are computed. A request begins with the blocks of its tokens that
are there already, and takes over what others fill while it waits its turn; only its last token is its own in any case,
for that one's logits are needed.
"""

from models.engine.kv.block_pool import BlockPool
from models.engine.sequences.sequence import LiveRequest


class BlockTables:
    """Gives requests the blocks of one pool."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.num_found = 0  # prompt tokens that were there already, of all requests

    def room_for(self, live: LiveRequest) -> int:
        """Return how many free blocks a request needs to begin."""
        found = self._find(live, 0)
        return self._pool.num_kept_of(found) + self._pool.blocks_for(live.num_tokens) - len(found)

    def begin(self, live: LiveRequest) -> None:
        """Give a request the blocks of all its known tokens, for which there must be room."""
        found = self._find(live, 0)
        self._pool.share(found)
        new = self._pool.allocate(self._pool.blocks_for(live.num_tokens) - len(found))
        if new is None:
            raise ValueError(f"there is no room for {live.id}")
        live.blocks = found + new
        self._skip(live, len(found))

    def grow(self, live: LiveRequest) -> bool:
        """Give a request the block of its newest token, if it lacks one; False if none is free."""
        if self.covers(live):
            return True
        block = self._pool.allocate(1)
        if block is None:
            return False
        live.blocks += block
        return True

    def stretch(self, live: LiveRequest, count: int, *, reserve: int) -> int:
        """Give a request room for up to ``count`` tokens more, of blocks beyond ``reserve``; return for how many."""

        def room() -> int:
            return len(live.blocks) * self._pool.block_tokens - live.num_tokens

        while room() < count and self._pool.num_free > reserve:
            live.blocks += self._pool.allocate(1) or []
        return min(count, room())

    def covers(self, live: LiveRequest) -> bool:
        """True if the request has a place for each of its tokens."""
        return len(live.blocks) * self._pool.block_tokens >= live.num_tokens

    def take_over(self, live: LiveRequest) -> None:
        """Put blocks that others have filled meanwhile in the place of the request's own, which are still to fill."""
        done = live.num_cached // self._pool.block_tokens
        found = self._find(live, done)
        if found:
            end = done + len(found)
            self._pool.share(found)
            self._pool.free(live.blocks[done:end])
            live.blocks[done:end] = found
            self._skip(live, end)

    def fill(self, live: LiveRequest, num_tokens: int) -> None:
        """Note that the request's next ``num_tokens`` tokens are in the cache, and name what is full by that."""
        live.num_cached += num_tokens
        num_full = live.num_cached // self._pool.block_tokens
        if num_full > live.num_named:
            names = live.block_names(num_full, self._pool.block_tokens)
            for index in range(live.num_named, num_full):
                self._pool.name(live.blocks[index], names[index])
            live.num_named = num_full

    def names_filled_by(self, live: LiveRequest, num_tokens: int) -> list[bytes]:
        """Return the names of the blocks that the request's next ``num_tokens`` tokens fill."""
        size = self._pool.block_tokens
        return live.block_names((live.num_cached + num_tokens) // size, size)[live.num_cached // size :]

    def next_name(self, live: LiveRequest) -> bytes | None:
        """Return the name of the block that the request fills next, None if that one will not be full."""
        size = self._pool.block_tokens
        index = live.num_cached // size
        return live.block_names(index + 1, size)[index] if index < self._num_shareable(live) else None

    def release(self, live: LiveRequest) -> None:
        """Take a request's blocks back."""
        self._pool.free(live.blocks)
        live.blocks = []
        live.num_cached = 0
        live.num_named = 0

    def forget(self, live: LiveRequest) -> None:
        """Let nobody find a request's blocks any more; whoever shares them keeps them."""
        self._pool.forget(live.blocks)

    def _find(self, live: LiveRequest, first: int) -> list[int]:
        """Return the blocks that hold the request's tokens from block ``first`` on, as far as there are any."""
        count = self._num_shareable(live)
        if first >= count:
            return []
        return self._pool.find(live.block_names(count, self._pool.block_tokens)[first:])

    def _num_shareable(self, live: LiveRequest) -> int:
        return (live.num_tokens - 1) // self._pool.block_tokens

    def _skip(self, live: LiveRequest, num_blocks: int) -> None:
        """Go on after the first ``num_blocks`` blocks, which are full and named."""
        num_tokens = num_blocks * self._pool.block_tokens
        self.num_found += live.note_found(num_tokens - live.num_cached)
        live.num_cached = num_tokens
        live.num_named = num_blocks

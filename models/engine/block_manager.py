"""The KV block manager: a pool of blocks with reference counts, the prefix cache, and each request's block table.

It allocates block numbers; the tensors are ``models.tensors.kv_cache``. The prefix cache finds full blocks by the
hashes of their tokens.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Sequence
from itertools import chain

from headrace.models.engine.sequence import SequenceState


class BlockPool:
    """Reference-counted KV blocks, each with the keys and values of ``block_tokens`` positions.

    It knows block numbers and hashes, not tensors, tokens or requests.

        blocks 0 … num_blocks - 1  =  free  ∪  cached  ∪  in use        no block is in two of them

        free     no owner, no hash
        cached   no owner, but a hash: can be found until it is evicted, the least recently used one first
        in use   one owner, or several that only read it

    A block has at most one hash, and a hash belongs to one block. A block is registered under its hash when it is full
    and its keys and values are computed; while it has the hash it is not written again.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(f"a pool needs blocks and tokens in them, not {num_blocks} blocks of {block_tokens}")
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.num_evicted = 0
        self.reset()

    def reset(self) -> None:
        """Make every block free, used or not."""
        # Low numbers are used first and most often, so they stay in the processor's caches.
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._ref_counts = [0] * self.num_blocks
        self._hashes: list[bytes | None] = [None] * self.num_blocks
        self._by_hash: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Blocks without an owner that can still be found by their hashes."""
        return len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold ``num_tokens`` positions."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Return ``num_blocks`` blocks with one owner and no hash; None, and no change, if there are fewer."""
        if num_blocks > self.num_free:
            return None
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(num_blocks)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def lookup(self, hashes: Sequence[bytes]) -> list[int]:
        """Return the blocks of ``hashes``, up to the first hash that is not in the cache."""
        found: list[int] = []
        for block_hash in hashes:
            block = self._by_hash.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def num_cached_of(self, blocks: Iterable[int]) -> int:
        """Return how many of ``blocks`` have no owner: sharing these leaves fewer to allocate."""
        return sum(self._ref_counts[block] == 0 for block in blocks)

    def left_by(self, tables: Iterable[Sequence[int]]) -> set[int]:
        """Return the blocks that have no owner beside ``tables``: they would be free without these."""
        owners = Counter(chain.from_iterable(tables))
        return {block for block, count in owners.items() if self._ref_counts[block] == count}

    def share(self, blocks: Iterable[int]) -> None:
        """Add an owner to each of the ``blocks`` that ``lookup`` has found."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                del self._cached[block]
            self._ref_counts[block] += 1

    def register(self, block: int, block_hash: bytes) -> None:
        """Make a block in use findable by its hash, unless another block with this hash is already."""
        if self._by_hash.setdefault(block_hash, block) == block:
            self._hashes[block] = block_hash

    def invalidate(self, blocks: Iterable[int]) -> None:
        """Remove the hashes of ``blocks``. Their owners keep them."""
        for block in blocks:
            block_hash = self._hashes[block]
            if block_hash is not None:
                del self._by_hash[block_hash]
                self._hashes[block] = None
                if self._ref_counts[block] == 0:
                    del self._cached[block]
                    self._free.append(block)

    def free(self, blocks: Sequence[int]) -> None:
        """Remove an owner from each of ``blocks``. Raises ValueError for a block without one.

        The last of them is allocated first: a prefix can be found without its end, but not an end without its prefix.
        """
        for block in reversed(blocks):
            if self._ref_counts[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if self._hashes[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def check(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless the pool matches its owners' block tables. Slow; for tests and idle times."""
        ref_counts = [0] * self.num_blocks
        for table in block_tables:
            for block in table:
                ref_counts[block] += 1
        unowned = [block for block in range(self.num_blocks) if ref_counts[block] == 0]
        hashed = {block: block_hash for block, block_hash in enumerate(self._hashes) if block_hash is not None}
        rules = {
            "owners are counted": ref_counts == self._ref_counts,
            "a block without an owner is free or cached": sorted([*self._free, *self._cached]) == unowned,
            "cached blocks have a hash": all(block in hashed for block in self._cached),
            "free blocks have no hash": not any(block in hashed for block in self._free),
            "hashes lead to their blocks": {block_hash: block for block, block_hash in hashed.items()} == self._by_hash,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise AssertionError(f"the block pool is inconsistent: {', '.join(broken)}")

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        block_hash = self._hashes[block]
        if block_hash is not None:
            del self._by_hash[block_hash]
        self._hashes[block] = None
        self.num_evicted += 1
        return block


class BlockTables:
    """The block tables of running requests that share one pool: allocated, grown and released.

        seq.blocks = | registered, perhaps shared: read only | being filled | still empty |
                     0                          num_registered     num_cached

    A full block is registered in the prefix cache as soon as its keys and values are computed. A request begins with
    the cached blocks of its tokens, and adopts blocks that other requests fill before its own prefill gets there. Its
    last token is always computed, because the request needs the logits of that token. A request that scores its prompt
    needs those of all tokens: it finds no cached blocks, and others find its own.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.num_found = 0  # prompt tokens that were in the prefix cache, of all requests

    def num_needed(self, seq: SequenceState, left: Collection[int] = ()) -> int:
        """Return how many free blocks a request needs to begin. Blocks ``left`` by their owners count as free."""
        found = [block for block in self._lookup(seq, 0) if block not in left]
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
        if seq.is_scoring_prompt:
            return 0  # the logits of every prompt token are needed, and the cache has keys and values only
        return (seq.num_tokens - 1) // self._pool.block_tokens

    def _skip(self, seq: SequenceState, num_blocks: int) -> None:
        """Continue after the first ``num_blocks`` blocks, which are full and registered."""
        num_tokens = num_blocks * self._pool.block_tokens
        self.num_found += seq.note_found(num_tokens - seq.num_cached)
        seq.num_cached = num_tokens
        seq.num_registered = num_blocks

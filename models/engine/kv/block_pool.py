"""The KV pool's book-keeping: who may use which block, and which blocks hold something worth finding again.

It knows block numbers and names, not tensors, tokens or requests.

    blocks 0 … num_blocks - 1  =  empty  ∪  kept  ∪  held        no block is in two of them

    empty   nobody's, and worth nothing
    kept    nobody's, but named: can be found until allocation needs it, the least recently used one first
    held    by one owner, or by several, who then only read it

A name stands for one block and a block has at most one name. Whoever names a block says that it is full and that its
keys and values are computed; it is not written again before it has lost its name.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Reference-counted KV blocks, each of which holds the keys and values of ``block_tokens`` positions."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(f"a pool needs blocks and tokens in them, not {num_blocks} blocks of {block_tokens}")
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.num_evicted = 0
        self.reset()

    def reset(self) -> None:
        """Make every block empty, whoever held it."""
        # The low numbers are used first and most, and stay warm.
        self._empty = list(range(self.num_blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._num_owners = [0] * self.num_blocks
        self._names: list[bytes | None] = [None] * self.num_blocks
        self._by_name: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, those that are kept among them."""
        return len(self._empty) + len(self._kept)

    @property
    def num_kept(self) -> int:
        """Blocks that nobody holds and that can still be found."""
        return len(self._kept)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold ``num_tokens`` positions."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Take ``num_blocks`` blocks without a name, or None (and nothing taken) if there are fewer."""
        if num_blocks > self.num_free:
            return None
        taken = [self._empty.pop() if self._empty else self._evict() for _ in range(num_blocks)]
        for block in taken:
            self._num_owners[block] = 1
        return taken

    def find(self, names: Sequence[bytes]) -> list[int]:
        """Return the blocks of ``names`` up to the first that stands for none."""
        found: list[int] = []
        for name in names:
            block = self._by_name.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def num_kept_of(self, blocks: Iterable[int]) -> int:
        """Return how many of ``blocks`` nobody holds: sharing those leaves fewer to allocate."""
        return sum(self._num_owners[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Give found ``blocks`` one owner more."""
        for block in blocks:
            if self._num_owners[block] == 0:
                del self._kept[block]
            self._num_owners[block] += 1

    def name(self, block: int, name: bytes) -> None:
        """Let a held block be found as ``name``, unless another block is already."""
        if self._by_name.setdefault(name, block) == block:
            self._names[block] = name

    def forget(self, blocks: Iterable[int]) -> None:
        """Let ``blocks`` be found no more. Their owners keep them."""
        for block in blocks:
            name = self._names[block]
            if name is not None:
                del self._by_name[name]
                self._names[block] = None
                if self._num_owners[block] == 0:
                    del self._kept[block]
                    self._empty.append(block)

    def free(self, blocks: Sequence[int]) -> None:
        """Take an owner from each of ``blocks``. Raises ValueError for one that has none: two would share it unasked.

        The last of them is allocated first: without it the others can still be found, and not the other way round.
        """
        for block in reversed(blocks):
            if self._num_owners[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._num_owners[block] -= 1
            if self._num_owners[block] == 0:
                if self._names[block] is None:
                    self._empty.append(block)
                else:
                    self._kept[block] = None

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless the books match the owners' block tables. Slow; for tests and idle times."""
        owners = [0] * self.num_blocks
        for table in held:
            for block in table:
                owners[block] += 1
        free = [block for block in range(self.num_blocks) if owners[block] == 0]
        named = {block: name for block, name in enumerate(self._names) if name is not None}
        rules = {
            "owners are counted": owners == self._num_owners,
            "a block without an owner is empty or kept": sorted([*self._empty, *self._kept]) == free,
            "kept blocks are named": all(block in named for block in self._kept),
            "empty blocks are not": not any(block in named for block in self._empty),
            "names lead to their blocks": {name: block for block, name in named.items()} == self._by_name,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise AssertionError(f"the pool's books are wrong: {', '.join(broken)}")

    def _evict(self) -> int:
        block, _ = self._kept.popitem(last=False)
        name = self._names[block]
        if name is not None:
            del self._by_name[name]
        self._names[block] = None
        self.num_evicted += 1
        return block

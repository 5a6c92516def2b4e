"""The pool never shares a block by mistake, never loses one, and finds cached blocks until they are evicted."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.models.engine.block_manager import BlockPool, BlockTables
from tests.models.engine.rig import ask, seq


def chain(word: str) -> list[bytes]:
    """The names of the blocks of a text: each stands for all letters so far."""
    return [word[: n + 1].encode() for n in range(len(word))]


class PoolMachine(RuleBasedStateMachine):
    """Owners with block tables; a slow model knows the content of each block and when it was freed."""

    @initialize(num_blocks=st.integers(1, 12))
    def begin(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks, 16)
        self.tables: list[list[int]] = []
        self.content: dict[int, bytes] = {}  # by block, of those that should be found

    @rule(word=st.text("ab", max_size=6))
    def begin_with_what_is_there(self, word: str) -> None:
        found = self.pool.lookup(chain(word))
        assert [self.content[block] for block in found] == chain(word)[: len(found)]
        assert len(found) == len(word) or chain(word)[len(found)] not in self.content.values()
        num_new = len(word) - len(found)
        num_free = self.pool.num_free
        room = self.pool.num_cached_of(found) + num_new
        if room > num_free:
            return
        self.pool.share(found)
        new = self.pool.allocate(num_new)
        assert new is not None
        assert self.pool.num_free == num_free - room
        for block in new:
            self.content.pop(block, None)
        self.tables.append(found + new)
        for block, name in zip(new, chain(word)[len(found) :], strict=True):
            self.pool.register(block, name)
            if name not in self.content.values():
                self.content[block] = name

    @rule(number=st.integers(0, 12))
    def allocate(self, number: int) -> None:
        num_free = self.pool.num_free
        blocks = self.pool.allocate(number)
        assert (blocks is None) == (number > num_free)
        if blocks is not None:
            assert len(blocks) == number
            assert not set(blocks) & {block for table in self.tables for block in table}
            for block in blocks:
                self.content.pop(block, None)
            self.tables.append(blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pool.free(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        table = self.tables[data.draw(st.integers(0, len(self.tables) - 1))]
        self.pool.invalidate(table)
        for block in table:
            self.content.pop(block, None)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check(self.tables)
        held = {block for table in self.tables for block in table}
        assert self.pool.num_free == self.pool.num_blocks - len(held)
        assert self.pool.num_cached == len(self.content.keys() - held)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def held(pool: BlockPool, word: str) -> list[int]:
    """Take blocks and name them."""
    blocks = pool.allocate(len(word))
    assert blocks is not None
    for block, name in zip(blocks, chain(word), strict=True):
        pool.register(block, name)
    return blocks


def test_what_was_used_last_is_kept_longest_and_an_end_goes_before_its_beginning() -> None:
    pool = BlockPool(6, 16)
    first, second = held(pool, "abc"), held(pool, "xyz")
    pool.free(first)
    pool.free(second)
    pool.share(first[:1])
    pool.free(first[:1])
    for expected in ("abc"[:2], "abc"[:1]):
        pool.allocate(1)
        assert pool.lookup(chain("abc")) == first[: len(expected)]
    assert pool.lookup(chain("xyz")) == second
    pool.allocate(3)
    assert (pool.lookup(chain("xyz")), pool.lookup(chain("abc"))) == ([], first[:1])
    assert pool.num_evicted == 5


def test_empty_blocks_are_used_before_any_that_can_be_found() -> None:
    pool = BlockPool(4, 16)
    pool.free(held(pool, "ab"))
    pool.allocate(2)
    assert (len(pool.lookup(chain("ab"))), pool.num_evicted) == (2, 0)


def test_the_first_to_fill_a_block_gives_it_its_name() -> None:
    pool = BlockPool(4, 16)
    first, second = held(pool, "a"), held(pool, "a")
    assert pool.lookup(chain("a")) == first
    pool.free(second)
    assert pool.num_cached == 0
    pool.free(first)
    assert (pool.num_cached, pool.num_free) == (1, 4)


def test_a_forgotten_block_that_others_hold_is_theirs_until_they_let_go() -> None:
    pool = BlockPool(2, 16)
    mine = held(pool, "a")
    pool.share(mine)
    pool.invalidate(mine)
    pool.free(mine)
    assert (pool.lookup(chain("a")), pool.num_free) == ([], 1)
    pool.free(mine)
    assert (pool.num_free, pool.num_cached) == (2, 0)


def test_freeing_twice_is_refused() -> None:
    pool = BlockPool(4, 16)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.free(blocks)
    with pytest.raises(ValueError, match="free already"):
        pool.free(blocks)
    pool.check([])


def test_books_that_are_wrong_are_noticed() -> None:
    pool = BlockPool(4, 16)
    blocks = held(pool, "ab")
    pool.check([blocks])
    with pytest.raises(AssertionError, match="owners are counted"):
        pool.check([])


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_blocks_for_rounds_up(tokens: int, blocks: int) -> None:
    assert BlockPool(4, 16).blocks_for(tokens) == blocks


@pytest.mark.parametrize(("num_blocks", "block_tokens"), [(0, 16), (4, 0)])
def test_an_empty_pool_is_refused(num_blocks: int, block_tokens: int) -> None:
    with pytest.raises(ValueError, match="a pool needs blocks"):
        BlockPool(num_blocks, block_tokens)


def test_reset_empties_what_anybody_held_or_could_find() -> None:
    pool = BlockPool(4, 16)
    pool.allocate(1)
    pool.free(held(pool, "ab"))
    pool.reset()
    assert (pool.num_free, pool.num_cached, pool.lookup(chain("ab"))) == (4, 0, [])
    pool.check([])


def test_a_request_needs_no_free_block_for_what_another_request_holds() -> None:
    tables = BlockTables(BlockPool(4, 4))
    first, second = seq(ask("abcdefgh!")), seq(ask("abcdefgh?"))
    tables.allocate(first)
    tables.note_computed(first, 9)
    assert tables.num_needed(second) == 1, "two of its three blocks are shared"
    tables.allocate(second)
    assert second.blocks[:2] == first.blocks[:2]

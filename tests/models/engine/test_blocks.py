"""The pool never gives a block to two, and never loses one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.blocks import BlockPool


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_every_block_is_free_or_allocated_once(num_blocks: int, moves: list[tuple[bool, int]]) -> None:
    pool = BlockPool(num_blocks, 16)
    held: list[list[int]] = []
    for takes, number in moves:
        if takes:
            blocks = pool.allocate(number)
            assert (blocks is None) == (number > num_blocks - sum(map(len, held)))
            if blocks is not None:
                assert len(blocks) == number
                held.append(blocks)
        elif held:
            pool.free(held.pop(number % len(held)))
        taken = [block for blocks in held for block in blocks]
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(num_blocks))
        assert pool.num_free == num_blocks - len(taken)
        pool.check()


def test_freeing_twice_is_refused() -> None:
    pool = BlockPool(4, 16)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.free(blocks)
    with pytest.raises(ValueError, match="free already"):
        pool.free(blocks)
    pool.check()


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_blocks_for_rounds_up(tokens: int, blocks: int) -> None:
    assert BlockPool(4, 16).blocks_for(tokens) == blocks


@pytest.mark.parametrize(("num_blocks", "block_tokens"), [(0, 16), (4, 0)])
def test_an_empty_pool_is_refused(num_blocks: int, block_tokens: int) -> None:
    with pytest.raises(ValueError, match="a pool needs blocks"):
        BlockPool(num_blocks, block_tokens)


def test_reset_frees_what_anybody_held() -> None:
    pool = BlockPool(4, 16)
    pool.allocate(3)
    pool.reset()
    assert pool.num_free == 4
    pool.check()

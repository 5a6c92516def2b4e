"""Equal names for equal beginnings of the same salt, and for nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from models.engine.sequences.prefix_hash import BlockHasher

TOKENS = st.lists(st.integers(0, 2), max_size=14)


def names(tokens: list[int], salt: str = "", *, num_prompt: int = 0, block_tokens: int = 2) -> list[bytes]:
    prompt, output = tokens[:num_prompt], tokens[num_prompt:]
    return BlockHasher(salt).first(len(tokens) // block_tokens, prompt, output, block_tokens)


@given(TOKENS, TOKENS, st.integers(0, 14), st.integers(0, 14))
def test_names_are_equal_as_far_as_the_tokens_are(one: list[int], other: list[int], cut: int, other_cut: int) -> None:
    ours, theirs = names(one, num_prompt=cut), names(other, num_prompt=other_cut)
    same = [one[: 2 * n + 2] == other[: 2 * n + 2] for n in range(min(len(ours), len(theirs)))]
    assert [a == b for a, b in zip(ours, theirs, strict=False)] == same
    assert len(set(ours)) == len(ours)


@given(TOKENS, st.text(max_size=4), st.text(max_size=4))
def test_another_salt_is_another_name(tokens: list[int], one: str, other: str) -> None:
    if one != other:
        assert not set(names(tokens, one)) & set(names(tokens, other))


def test_names_grow_with_the_output() -> None:
    grown = BlockHasher("")
    output: list[int] = []
    for token in range(9):
        output.append(token)
        expected = names([7, 7, 7, *output], block_tokens=4)
        assert grown.first((3 + len(output)) // 4, [7, 7, 7], output, 4) == expected
    assert grown.first(1, [7, 7, 7], output, 4) == names([7, 7, 7, 0], block_tokens=4)

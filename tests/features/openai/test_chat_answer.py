"""A stream that goes on in another attempt: nothing is repeated, nothing is glued."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.producer_api.streaming.job_events import Diverged, TextDeduplicator, TokenDeduplicator
from headrace.store.streams.checkpoints import LogprobRow

Pieces = st.lists(st.text("ab", min_size=1, max_size=3), max_size=8)


def _play(splice: TextDeduplicator, pieces: list[str]) -> str:
    return "".join(splice.add(piece) for piece in pieces)


@given(first=Pieces, second=Pieces, num_kept=st.integers(0, 8))
def test_a_reader_gets_the_second_attempts_text_or_an_error(first: list[str], second: list[str], num_kept: int) -> None:
    splice = TextDeduplicator()
    sent = _play(splice, first)
    assert sent == "".join(first)
    whole = [*first[:num_kept], *second]
    try:
        assert splice.restart("".join(first[:num_kept])) == ""
        sent += _play(splice, second)
        splice.finish()
    except Diverged:
        assert not "".join(whole).startswith("".join(first))
    else:
        assert sent == "".join(whole)


@given(attempts=st.lists(st.integers(0, 12), min_size=1, max_size=5), pieces=Pieces)
def test_any_number_of_cut_attempts_say_it_once(attempts: list[int], pieces: list[str]) -> None:
    splice = TextDeduplicator()
    sent = ""
    for num_pieces in attempts:
        sent += _play(splice, pieces[:num_pieces])
        splice.restart("")
    sent += _play(splice, pieces)
    splice.finish()
    assert sent == "".join(pieces)


@given(
    attempts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5), sizes=st.lists(st.integers(1, 3))
)
def test_any_number_of_cut_attempts_tell_each_token_once(attempts: list[tuple[int, int]], sizes: list[int]) -> None:
    """Each attempt sends some of the deltas, and the next one keeps some of these."""
    numbers = iter(range(sum(sizes)))
    deltas = [tuple(LogprobRow(next(numbers), 0.0) for _ in range(size)) for size in sizes]
    splice, told = TokenDeduplicator(), []
    start = 0
    for num_said, num_kept in attempts:
        for delta in deltas[start:num_said]:
            told += splice.add(delta)
        start = min(num_kept, max(num_said, start), len(deltas))
        told += splice.restart(tuple(chain.from_iterable(deltas[:start])))
    for delta in deltas[start:]:
        told += splice.add(delta)
    assert [one.token_id for one in told] == list(range(sum(sizes)))


def test_a_difference_is_seen_at_its_first_character() -> None:
    splice = TextDeduplicator()
    splice.add("water wheel")
    splice.restart("")
    assert splice.add("wat") == ""
    with pytest.raises(Diverged):
        splice.add("ch")


def test_a_second_attempt_may_not_be_shorter() -> None:
    splice = TextDeduplicator()
    splice.add("water wheel")
    splice.restart("")
    splice.add("water")
    with pytest.raises(Diverged):
        splice.finish()

"""Packing of an encoder's inputs into passes: no input starves, and passes have little padding."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.models.engine.scheduling.packing import PASS_COST, PendingInputs, choose, in_order, pack

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def claimants(lengths: list[list[int]], served: list[int]) -> list[PendingInputs]:
    return [PendingInputs(each, done) for each, done in zip(lengths, served, strict=False)]


@given(LENGTHS, st.integers(1, 1000))
def test_passes_hold_every_input_once_within_the_budget_and_with_little_padding(
    lengths: list[int], budget: int
) -> None:
    passes = pack(lengths, budget)
    assert sorted(place for one in passes for place in one) == list(range(len(lengths)))
    for one in passes:
        longest = max(lengths[place] for place in one)
        assert len(one) == 1 or longest * len(one) <= budget
        assert longest * len(one) - sum(lengths[place] for place in one) <= PASS_COST


def test_similar_lengths_share_a_pass() -> None:
    assert pack([8, 200, 9, 190, 8], budget=4096) == [[1, 3], [2, 0, 4]]


def test_as_much_padding_as_another_pass_costs_is_taken_and_no_more() -> None:
    assert pack([200, 136, 136, 200], budget=4096) == [[0, 3, 1, 2]]
    assert pack([200, 136, 135, 200], budget=4096) == [[0, 3, 1], [2]]
    assert pack([200, 200, 200], budget=599) == [[0, 1], [2]]


@given(
    st.lists(LENGTHS, min_size=1, max_size=6), st.lists(st.integers(0, 99), min_size=6, max_size=6), st.integers(1, 999)
)
def test_what_is_chosen_fits_and_the_oldest_is_served(lengths: list[list[int]], served: list[int], budget: int) -> None:
    chosen = choose(claimants(lengths, served), budget)
    tokens = sum(sum(each[:count]) for each, count in zip(lengths, chosen, strict=True))
    assert all(0 <= count <= len(each) for each, count in zip(lengths, chosen, strict=True))
    assert chosen[0] >= 1
    assert tokens <= budget or sum(chosen) == 1
    if sum(map(sum, lengths)) <= budget:
        assert chosen == [len(each) for each in lengths]


def test_a_short_request_does_not_wait_for_long_ones() -> None:
    long, other, short = [100] * 50, [100] * 50, [10]
    waiting = [PendingInputs(long), PendingInputs(other, served=5000), PendingInputs(short)]
    assert choose(waiting, budget=400) == [2, 1, 1]
    assert choose(waiting, budget=150) == [1, 0, 1], "who had least goes before who had much"


def test_the_better_class_goes_first() -> None:
    batch, interactive = PendingInputs([100] * 9, class_rank=2), PendingInputs([100] * 9, served=900, class_rank=0)
    assert choose([PendingInputs([100]), batch, interactive], budget=200) == [1, 0, 1]


def test_nobody_waits_and_nothing_is_chosen() -> None:
    assert choose([], 100) == []
    assert pack([], 100) == []


def test_the_best_pass_is_first_and_the_oldest_request_is_in_one_of_the_first_two() -> None:
    passes = [[1, 2], [0, 3], [4], [5]]
    batch, interactive = (2, 900), (0, 900)
    ranks = [batch, batch, batch, batch, (0, 10), interactive]
    assert in_order(passes, ranks) == [[4], [0, 3], [5], [1, 2]]
    assert in_order([[1], [2], [0]], [batch, interactive, interactive]) == [[1], [0], [2]]
    assert in_order([[0, 1]], [batch, batch]) == [[0, 1]]

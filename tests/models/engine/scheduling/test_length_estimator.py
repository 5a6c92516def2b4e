"""Estimated output lengths: the maximum, until there are samples to learn from."""

from statistics import fmean

from hypothesis import given
from hypothesis import strategies as st

from headrace.models.engine.scheduling.scheduler import FEWEST, LAST_OUTPUTS, LengthEstimator

MANY = 10_000


def lengths_of(values: list[int]) -> LengthEstimator:
    lengths = LengthEstimator()
    for value in values:
        lengths.record(value)
    return lengths


@given(st.lists(st.integers(1, 60), min_size=FEWEST, max_size=LAST_OUTPUTS + 40), st.integers(0, 70))
def test_what_is_still_to_come_is_the_mean_of_what_the_longer_ones_had_still_to_come(
    values: list[int], num_output: int
) -> None:
    longer = [value - num_output for value in values[-LAST_OUTPUTS:] if value > num_output]
    expected = fmean(longer) if longer else num_output
    assert 0 <= lengths_of(values).remaining(num_output, MANY) - expected < 1


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(0, 30), st.integers(0, 40))
def test_never_more_than_the_request_may_have(values: list[int], num_output: int, more: int) -> None:
    assert 0 <= lengths_of(values).remaining(num_output, num_output + more) <= more


def test_the_last_256_outputs_count_once_16_have_ended() -> None:
    assert (lengths_of([5] * 15).remaining(2, MANY), lengths_of([5] * 16).remaining(2, MANY)) == (MANY - 2, 3)
    assert lengths_of([9, *[5] * 255]).remaining(5, MANY) == 4
    assert lengths_of([9, *[5] * 256]).remaining(5, MANY) == 5, "the one that was longer is forgotten"


def test_until_a_few_have_ended_each_may_use_all() -> None:
    lengths = lengths_of([5] * (FEWEST - 1))
    assert lengths.remaining(2, MANY) == MANY - 2
    lengths.record(5)
    assert lengths.remaining(2, MANY) == 3

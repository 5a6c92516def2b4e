"""What a token more costs, from passes of a known cost and from those that were held up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.speculation.step_costs import StepCosts


@given(st.floats(0.001, 1.0), st.floats(0.0, 0.1), st.sets(st.integers(1, 16), min_size=2), st.floats(1.0, 50.0))
def test_it_finds_what_a_pass_and_a_token_take_though_some_are_held_up(
    base: float, each: float, sizes: set[int], slower: float
) -> None:
    costs = StepCosts(16)
    for size in sizes:
        for factor in (slower, 1.0, slower):
            costs.record(size, factor * (base + each * size))
    assert costs.line() == pytest.approx((base, each), rel=1e-6, abs=1e-9)


def test_passes_of_one_size_say_nothing_and_large_ones_do_not_count() -> None:
    costs = StepCosts(16)
    assert costs.line() is None
    costs.record(4, 0.1)
    costs.record(17, 9.0)
    assert costs.line() is None


def test_it_follows_a_machine_that_changes() -> None:
    costs = StepCosts(16)
    for seconds in (0.001, 0.01):
        for _ in range(8):
            costs.record(1, 2 * seconds)
            costs.record(4, 5 * seconds)
    assert costs.line() == pytest.approx((0.01, 0.01))


def test_what_is_long_ago_is_forgotten() -> None:
    costs = StepCosts(16)
    costs.record(4, 0.1)
    for _ in range(600):
        costs.record(1, 0.1)
    assert costs.line() is None


@given(st.lists(st.tuples(st.integers(1, 16), st.floats(0.0, 10.0)), min_size=1, max_size=60))
def test_nothing_is_negative(passes: list[tuple[int, float]]) -> None:
    costs = StepCosts(16)
    for size, seconds in passes:
        costs.record(size, seconds)
    base, each = costs.line() or (0.0, 0.0)
    assert base >= 0 or base == pytest.approx(0, abs=1e-9)
    assert each >= 0

"""The betting test: what it refutes, what it does not, and how often it is wrong when it looks at every value."""

import math
import random
from collections import Counter

import pytest

from headrace.features.rollouts.sequential_test import (
    GroupSums,
    effective_number,
    log_e_value,
    log_mean,
    spread_between,
)


def test_a_mean_above_the_margin_is_refuted_and_one_below_it_is_not() -> None:
    worse = {1.0: 40, 0.0: 960}
    assert log_e_value([(worse, 0.01)]) > math.log(100)
    assert log_e_value([(worse, 0.05)]) < 0
    # Evidence of two parts adds up, each against its own margin.
    parts = log_e_value([({1.0: 20, 0.0: 480}, 0.01), ({1.0: 20, 0.0: 480}, 0.01)])
    assert parts == pytest.approx(log_e_value([(worse, 0.01)]))


def test_no_values_are_no_evidence() -> None:
    assert log_e_value([]) == log_e_value([({}, 0.1)]) == 0


def test_looking_at_every_value_is_wrong_no_more_often_than_promised() -> None:
    """On the edge of the hypothesis, which is the worst case, of 400 sequences at most 5 % may ever be refuted."""
    draw = random.Random(5)
    alarms = 0
    for _ in range(400):
        tally: Counter[float] = Counter()
        for _ in range(40):
            tally.update(draw.choices((1.0, -1.0, 0.0), (0.3, 0.2, 0.5), k=5))
            if log_e_value([(tally, 0.1)]) >= math.log(1 / 0.05):
                alarms += 1
                break
    assert 0 < alarms <= 0.05 * 400


def test_the_spread_of_groups_is_that_of_their_means_without_the_noise() -> None:
    draw = random.Random(3)

    def groups(rates: list[float]) -> list[GroupSums]:
        sums = [GroupSums() for _ in rates]
        for row, rate in enumerate(rates):
            for _ in range(500):
                sums[row] = sums[row].with_value(float(draw.random() < rate))
        return sums

    alike, apart = spread_between(groups([0.3] * 30)), spread_between(groups([0.1, 0.5] * 15))
    assert alike is not None
    assert alike < 0.02
    assert apart is not None
    assert 0.17 < apart < 0.24
    assert spread_between([GroupSums(5, 1, 1)]) is None


def test_unequal_groups_count_as_fewer() -> None:
    assert effective_number([10, 10, 10]) == pytest.approx(3)
    assert effective_number([100, 1, 1]) < 1.1
    assert effective_number([]) == 0


def test_the_capital_is_that_of_the_stakes() -> None:
    stakes = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
    assert log_e_value([({1.0: 1}, 0.0)]) == pytest.approx(math.log(1 + sum(stakes) / 8))
    # Of a wide margin the two largest stakes could be ruined by one value: they do not play.
    assert log_e_value([({1.0: 2}, 0.5)]) == pytest.approx(math.log(sum((1 + 0.5 * s) ** 2 for s in stakes[:6]) / 8))
    assert log_mean([math.log(1.0), math.log(3.0)]) == pytest.approx(math.log(2.0))
    assert log_mean([-math.inf, -math.inf]) == -math.inf


def test_sums_of_groups_give_their_spread() -> None:
    sums = GroupSums().with_value(0.5).with_value(-1.0)
    assert sums == GroupSums(2, -0.5, 1.25)
    apart = [GroupSums(2, 2.0, 2.0), GroupSums(2, 0.0, 0.0), GroupSums()]
    assert spread_between(apart) == pytest.approx(math.sqrt(0.5))
    assert spread_between([GroupSums(1, 1.0, 1.0), GroupSums(1, 0.0, 0.0)]) is None
    assert spread_between([GroupSums(2, 1.0, 1.0), GroupSums(2, 1.0, 1.0)]) == 0.0
    assert effective_number([3, 1, 0]) == pytest.approx(1.6)

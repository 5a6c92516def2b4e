"""How large a pass of an encoder may be, from what earlier passes took."""

from math import inf

import pytest

from headrace.models.engine.scheduling.pass_time import FEWEST_TOKENS, PassTime

MOST = 4096


def learned(limit_s: float, token_s: float, fixed_s: float = 0.0) -> int:
    """Return the budget after 50 passes of the size that was allowed, each ``fixed_s`` and ``token_s`` a token long."""
    times = PassTime(limit_s)
    for _ in range(50):
        num_tokens = times.budget(MOST)
        times.record(num_tokens, fixed_s + token_s * num_tokens)
    return times.budget(MOST)


@pytest.mark.parametrize(
    ("limit_s", "token_s", "fixed_s", "expected"),
    [
        (0.05, 100e-6, 0.0, 500),
        (0.05, 100e-6, 0.01, 400),
        (0.05, 1e-6, 0.0, MOST),
        (0.05, 1.0, 0.0, FEWEST_TOKENS),
        (inf, 1.0, 0.0, MOST),
    ],
)
def test_a_pass_takes_its_time(limit_s: float, token_s: float, fixed_s: float, expected: int) -> None:
    assert learned(limit_s, token_s, fixed_s) == pytest.approx(expected, rel=0.02)


def test_before_anything_is_known_a_pass_is_small_and_one_of_half_of_that_teaches() -> None:
    assert PassTime(inf).budget(MOST) == MOST
    times = PassTime(0.05)
    assert (times.budget(MOST), times.budget(100)) == (256, 100)
    times.record(127, 127 * 100e-6)
    assert times.budget(MOST) == 256
    times.record(128, 128 * 100e-6)
    assert times.budget(MOST) == 500


def test_one_slow_pass_changes_nothing_and_a_pass_that_is_too_small_is_not_measured() -> None:
    times = PassTime(0.05)
    for _ in range(5):
        times.record(500, 0.05)
    times.record(500, 5.0)
    times.record(4, 1.0)
    assert times.budget(MOST) == 500
    assert times.budget(100) == 100, "never more than a step"

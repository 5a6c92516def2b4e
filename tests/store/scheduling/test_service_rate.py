"""The service rate estimate on queues with a known speed."""

import pytest

from headrace.store.scheduling.service_rate import KNOWN_FOR_S, Interval, Rate, RateMeter


def busy(at: float, started: int, tokens: int = 0) -> Interval:
    return Interval(at=at, num_before=1_000, num_left=started, started_jobs=started, started_tokens=tokens)


def measured(meter: RateMeter) -> Rate:
    rate = meter.rate()
    assert rate is not None
    return rate


def test_nothing_is_known_before_a_second_of_waiting_jobs() -> None:
    meter = RateMeter(at=0.0)
    for quarter in range(1, 5):
        assert meter.rate() is None
        assert meter.observe(busy(quarter / 4, 5))
    meter.observe(busy(1.25, 5, 500))
    assert measured(meter) == Rate(jobs_per_s=pytest.approx(20, rel=0.05), tokens_per_s=pytest.approx(400, rel=0.05))


def test_a_queue_that_runs_dry_says_nothing() -> None:
    meter = RateMeter(at=0.0)
    for second in range(1, 100):
        assert not meter.observe(Interval(second, num_before=1, num_left=1, started_jobs=1, started_tokens=9))
    assert meter.rate() is None


def test_the_time_before_a_start_counts_though_nothing_was_started_in_it() -> None:
    meter = RateMeter(at=0.0)
    for second in range(1, 51):
        assert meter.observe(busy(second, 1 if second % 10 == 0 else 0)) == (second % 10 == 0)
    assert measured(meter).jobs_per_s == pytest.approx(0.1)


def test_jobs_that_were_cancelled_were_not_served() -> None:
    meter = RateMeter(at=0.0)
    for second in range(1, 10):
        meter.observe(Interval(second, num_before=1_000, num_left=500, started_jobs=2, started_tokens=20))
    assert measured(meter).jobs_per_s == pytest.approx(2)


def test_it_follows_a_change_of_speed() -> None:
    meter = RateMeter(at=0.0)
    for second in range(1, 31):
        meter.observe(busy(second, 100))
    for second in range(31, 121):
        meter.observe(busy(second, 10))
    assert measured(meter).jobs_per_s == pytest.approx(10, rel=0.2)


def test_an_outage_is_no_speed() -> None:
    meter = RateMeter(at=0.0)
    for second in range(1, 11):
        meter.observe(busy(second, 10))
    later = 10 + KNOWN_FOR_S + 1
    assert not meter.observe(busy(later, 3))
    meter.observe(busy(later + 1, 10))
    assert measured(meter).jobs_per_s == pytest.approx(10)


def test_a_clock_that_stands_still_does_no_harm() -> None:
    meter = RateMeter(at=5.0)
    assert not meter.observe(busy(5.0, 3))
    assert not meter.observe(busy(4.0, 3))
    assert meter.observe(busy(6.0, 3))

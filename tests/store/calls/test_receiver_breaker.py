"""Receivers that are paused after failures."""

import pytest

from headrace.store.calls import receiver_breaker
from headrace.store.calls.receiver_breaker import ReceiverBreaker


def test_a_breaker_knows_who_was_paused_since_the_last_answer() -> None:
    breaker = ReceiverBreaker(threshold=2, first_s=5, longest_s=300)
    breaker.failed("a", 10.0)
    assert (breaker.has_paused("a"), breaker.has_paused("b")) == (False, False)
    breaker.failed("a", 10.0)
    assert (breaker.has_paused("a"), breaker.blocked_for_s("a", 12.0)) == (True, 3.0)
    breaker.failed("a", 1000.0)
    assert breaker.blocked_for_s("a", 1000.0) == 10.0
    breaker.answered("a")
    assert breaker.has_paused("a") is False
    usual = ReceiverBreaker()
    for _ in range(30):
        usual.failed("a", 0.0)
    assert usual.blocked_for_s("a", 0.0) == 300.0
    usual.overloaded("b", 0.0)
    assert usual.blocked_for_s("b", 0.0) == 5.0


def test_the_breaker_slows_down_for_whoever_says_so_at_once() -> None:
    breaker = ReceiverBreaker(threshold=3, first_s=5, longest_s=15)
    pauses = []
    for now in (0.0, 100.0, 200.0, 300.0):
        breaker.overloaded("a", now)
        pauses.append(breaker.blocked_for_s("a", now))
    assert pauses == [5, 10, 15, 15]


def test_the_breaker_waits_as_it_is_asked_and_no_longer_than_its_longest_pause() -> None:
    breaker = ReceiverBreaker(threshold=3, first_s=5, longest_s=15)
    pauses = []
    for asked_s in (7, 2, 100):
        breaker.asked_to_wait("a", 10.0, asked_s)
        pauses.append(breaker.blocked_for_s("a", 10.0))
    assert pauses == [7, 7, 15]
    assert (breaker.blocked(24.9), breaker.blocked(25.0)) == ({"a"}, frozenset())
    assert (breaker.blocked_for_s("a", 30.0), breaker.blocked_for_s("b", 10.0)) == (0, 0)


def test_the_breaker_remembers_those_that_failed_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_breaker, "MAX_REMEMBERED", 2)
    breaker = ReceiverBreaker(threshold=1, first_s=5, longest_s=15)
    for name in ("a", "b", "a", "c"):
        breaker.failed(name, 0.0)
    assert breaker.blocked(1.0) == {"a", "c"}


def test_the_breaker_opens_for_longer_and_longer_and_closes_at_the_first_answer() -> None:
    breaker = ReceiverBreaker(threshold=3, first_s=5, longest_s=15)
    now = 100.0
    pauses: list[float] = []
    for _ in range(6):
        breaker.failed("a", now)
        pauses.append(breaker.blocked_for_s("a", now))
        now += pauses[-1]
    assert pauses == [0, 0, 5, 10, 15, 15]
    assert breaker.blocked(now - 1) == {"a"}
    breaker.answered("a")
    assert breaker.blocked(now - 1) == frozenset()
    breaker.failed("a", now)
    assert breaker.blocked_for_s("a", now) == 0

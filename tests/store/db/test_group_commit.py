import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from store.db.group_commit import HURRY_S, Wave
from store.errors import HeadraceError, InvalidRequest, Unavailable


class Gate:
    """A ``run`` that stops in its first call until opened, so that the next wave gathers behind it."""

    def __init__(self, answer: Callable[[Sequence[int]], Sequence[int | HeadraceError]]) -> None:
        self.calls: list[list[int]] = []
        self.entered = threading.Event()
        self.opened = threading.Event()
        self._answer = answer

    def __call__(self, items: Sequence[int]) -> Sequence[int | HeadraceError]:
        self.calls.append(list(items))
        self.entered.set()
        assert self.opened.wait(10)
        return self._answer(items)


def double(items: Sequence[int]) -> list[int | HeadraceError]:
    return [item * 2 for item in items]


def gather(wave: Wave[int, int], gate: Gate, items: Sequence[int]) -> list[Future[int]]:
    """Let the first item lead and be stopped in the gate, then seat the others in order behind it and open the gate."""
    pool = ThreadPoolExecutor(len(items))
    futures = [pool.submit(wave.join, items[0])]
    assert gate.entered.wait(10)
    for position, item in enumerate(items[1:], start=1):
        futures.append(pool.submit(wave.join, item))
        while len(wave._waiting) < position:
            threading.Event().wait(0.001)
    gate.opened.set()
    pool.shutdown(wait=False)
    return futures


def test_callers_who_come_while_a_wave_runs_form_the_next_one() -> None:
    gate = Gate(double)
    futures = gather(Wave(gate), gate, [1, 2, 3, 4])
    assert [future.result(10) for future in futures] == [2, 4, 6, 8]
    assert gate.calls == [[1], [2, 3, 4]]


def test_a_wave_takes_at_most_its_size_in_the_order_of_arrival() -> None:
    gate = Gate(double)
    futures = gather(Wave(gate, max_size=2), gate, [1, 2, 3, 4, 5, 6])
    assert [future.result(10) for future in futures] == [2, 4, 6, 8, 10, 12]
    assert gate.calls == [[1], [2, 3], [4, 5], [6]]


def test_an_items_own_error_is_raised_to_its_caller_alone() -> None:
    gate = Gate(lambda items: [InvalidRequest("odd") if item % 2 else item for item in items])
    futures = gather(Wave(gate), gate, [2, 3, 4])
    assert futures[0].result(10) == 2
    with pytest.raises(InvalidRequest, match="odd"):
        futures[1].result(10)
    assert futures[2].result(10) == 4


def test_a_bad_item_that_breaks_the_call_fails_alone() -> None:
    gate = Gate(lambda items: [10 // item for item in items])
    futures = gather(Wave(gate), gate, [1, 2, 0, 5])
    assert [futures[i].result(10) for i in (0, 1, 3)] == [10, 5, 2]
    with pytest.raises(ZeroDivisionError):
        futures[2].result(10)
    assert gate.calls == [[1], [2, 0, 5], [2], [0], [5]]


def test_an_absent_service_is_told_to_all_without_asking_it_again() -> None:
    def away(items: Sequence[int]) -> list[int | HeadraceError]:
        raise Unavailable("away")

    gate = Gate(away)
    for future in gather(Wave(gate), gate, [1, 2, 3]):
        with pytest.raises(Unavailable, match="away"):
            future.result(10)
    assert gate.calls == [[1], [2, 3]]


def test_a_service_that_goes_away_while_items_are_tried_alone_is_not_asked_for_each() -> None:
    def dying(items: Sequence[int]) -> list[int | HeadraceError]:
        if items == [3]:
            raise Unavailable("away")
        return [10 // item for item in items]

    gate = Gate(dying)
    futures = gather(Wave(gate), gate, [1, 2, 3, 0, 5])
    assert futures[1].result(10) == 5
    for future in futures[2:]:
        with pytest.raises(Unavailable):
            future.result(10)
    assert gate.calls == [[1], [2, 3, 0, 5], [2], [3]]


def test_too_few_outcomes_are_an_error_and_nobody_is_left_waiting() -> None:
    gate = Gate(lambda items: [1] if len(items) == 1 else [])
    futures = gather(Wave(gate), gate, [7, 8, 9])
    assert [future.result(10) for future in futures] == [1, 1, 1], "each is asked alone after the short answer"


def test_a_leader_that_is_interrupted_tells_its_wave_and_hands_over() -> None:
    def interrupted(items: Sequence[int]) -> list[int | HeadraceError]:
        if 2 in items:
            raise KeyboardInterrupt
        return list(items)

    gate = Gate(interrupted)
    futures = gather(Wave(gate, max_size=2), gate, [1, 2, 3, 4])
    for future in futures[1:3]:
        with pytest.raises(KeyboardInterrupt):
            future.result(10)
    assert futures[3].result(10) == 4


def test_none_is_a_result() -> None:
    wave: Wave[int, None] = Wave(lambda items: [None for _ in items])
    assert wave.join(1) is None


def test_many_threads_each_get_their_own_result_and_none_is_lost() -> None:
    sizes: list[int] = []

    def run(items: Sequence[int]) -> list[int | HeadraceError]:
        sizes.append(len(items))
        return [InvalidRequest(str(item)) if item % 7 == 0 else -item for item in items]

    wave: Wave[int, int] = Wave(run, max_size=8)

    def call(first: int) -> int:
        for item in range(first, first + 200):
            if item % 7 == 0:
                with pytest.raises(InvalidRequest, match=str(item)):
                    wave.join(item)
            else:
                assert wave.join(item) == -item
        return 200

    with ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(call, range(0, 32_000, 1000), timeout=60)) == 6400
    assert sum(sizes) == 6400, "each item is run once"
    assert max(sizes) <= 8
    assert not wave._waiting
    assert not wave._led


def test_waves_begin_apart_and_nobody_waits_when_none_has_begun_lately() -> None:
    now, slept = [100.0], list[float]()

    def wait(_enough: threading.Event, seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    wave: Wave[int, int] = Wave(double, pace_s=0.5, clock=lambda: now[0], wait=wait)
    assert wave.join(1) == 2
    assert slept == []
    now[0] += 0.125
    assert wave.join(2) == 4
    assert slept == [0.375]
    now[0] += 0.5
    assert wave.join(3) == 6
    assert slept == [0.375]


def test_callers_who_come_while_a_leader_waits_share_its_wave() -> None:
    calls: list[list[int]] = []
    waiting, go = threading.Event(), threading.Event()

    def run(items: Sequence[int]) -> list[int | HeadraceError]:
        calls.append(list(items))
        return double(items)

    def wait(_enough: threading.Event, _seconds: float) -> None:
        waiting.set()
        assert go.wait(10)

    wave: Wave[int, int] = Wave(run, pace_s=0.5, clock=lambda: 100.0, wait=wait)
    assert wave.join(1) == 2
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(wave.join, 2)]
        assert waiting.wait(10)
        futures += [pool.submit(wave.join, item) for item in (3, 4)]
        while len(wave._waiting) < 3:
            threading.Event().wait(0.001)
        go.set()
        assert [future.result(10) for future in futures] == [4, 6, 8]
    assert [sorted(call) for call in calls] == [[1], [2, 3, 4]]


def test_a_wave_does_not_wait_when_enough_have_gathered() -> None:
    gate = Gate(double)
    # Nobody's time comes: only that enough wait lets a wave begin.
    wave: Wave[int, int] = Wave(gate, pace_s=3600, enough=3)
    futures = gather(wave, gate, [1, 2, 3])
    assert futures[0].result(10) == 2
    assert not futures[1].done()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(wave.join, 4).result(10) == 8
    assert [future.result(10) for future in futures[1:]] == [4, 6]
    assert gate.calls == [[1], [2, 3, 4]]


def test_one_who_hurries_takes_those_who_wait_along_but_not_again_at_once() -> None:
    now, slept = [100.0], list[float]()

    def wait(_enough: threading.Event, seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    wave: Wave[int, int] = Wave(double, pace_s=0.25, clock=lambda: now[0], wait=wait)
    wave.join(1)
    assert wave.join(2, hurries=True) == 4
    assert slept == [], "it leads and does not wait"
    assert wave.join(3, hurries=True) == 6
    assert slept == [0.25], "so soon again it waits as everybody"
    now[0] += HURRY_S
    assert wave.join(4, hurries=True) == 8
    assert slept == [0.25]
    assert wave.join(5) == 10
    assert slept == [0.25, 0.25], "the hurry was for one wave"

    gate = Gate(double)
    led: Wave[int, int] = Wave(gate, pace_s=3600)
    futures = gather(led, gate, [1, 2, 3])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(led.join, 4, hurries=True).result(10) == 8
    assert [future.result(10) for future in futures] == [2, 4, 6]
    assert gate.calls == [[1], [2, 3, 4]]


def test_those_who_are_brought_together_get_an_outcome_each_and_in_order() -> None:
    wave: Wave[int, int] = Wave(
        lambda items: [InvalidRequest("odd") if item % 2 else item for item in items], max_size=2
    )
    first, second, *rest = wave.join_all([2, 3, 4, 6, 8])
    assert (first, rest) == (2, [4, 6, 8])
    assert isinstance(second, InvalidRequest)
    assert wave.join_all([]) == []
    assert not wave._led


def test_a_caller_of_many_who_is_interrupted_leaves_the_line_to_others() -> None:
    def run(items: Sequence[int]) -> list[int | HeadraceError]:
        if 2 in items:
            raise KeyboardInterrupt
        return list(items)

    gate = Gate(run)
    wave: Wave[int, int] = Wave(gate, max_size=1)
    pool = ThreadPoolExecutor(3)
    first = pool.submit(wave.join, 1)
    assert gate.entered.wait(10)
    many = pool.submit(wave.join_all, [2, 3, 4])
    while len(wave._waiting) < 3:
        threading.Event().wait(0.001)
    last = pool.submit(wave.join, 5)
    while len(wave._waiting) < 4:
        threading.Event().wait(0.001)
    gate.opened.set()
    with pytest.raises(KeyboardInterrupt):
        many.result(10)
    assert (first.result(10), last.result(10)) == (1, 5)
    assert gate.calls == [[1], [2], [5]]
    pool.shutdown()

"""Threads and coroutines that call together share a call, and each gets its own outcome."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition

import pytest

from headrace.store.db.group_commit import URGENT_EVERY_S, GroupCommit, isolated
from headrace.store.errors import HeadraceError, InvalidRequest, Unavailable
from tests.threads import threads_named


class Gate:
    """A ``run`` that stops in its first call until opened, so that the next batch fills behind it."""

    def __init__(
        self, answer: Callable[[Sequence[int]], Sequence[int | HeadraceError]], *, opened: bool = False
    ) -> None:
        self.calls: list[list[int]] = []
        self.entered = threading.Event()
        self.opened = threading.Event()
        if opened:
            self.opened.set()
        self._answer = answer

    def __call__(self, items: Sequence[int]) -> Sequence[int | HeadraceError]:
        self.calls.append(list(items))
        self.entered.set()
        assert self.opened.wait(10)
        return self._answer(items)


def double(items: Sequence[int]) -> list[int | HeadraceError]:
    return [item * 2 for item in items]


def double_even(items: Sequence[int]) -> list[int | HeadraceError]:
    return [InvalidRequest(f"{item} is odd") if item % 2 else item * 2 for item in items]


def gather(group: GroupCommit[int, int], gate: Gate, items: Sequence[int]) -> list[Future[int]]:
    """Stop the batch of the first item in the gate, then let the others wait in order behind it and open the gate."""
    pool = ThreadPoolExecutor(len(items))
    futures = [pool.submit(group.join, items[0])]
    assert gate.entered.wait(10)
    for position, item in enumerate(items[1:], start=1):
        futures.append(pool.submit(group.join, item))
        while len(group.waiting) < position:
            threading.Event().wait(0.001)
    gate.opened.set()
    pool.shutdown(wait=False)
    return futures


class Time:
    """A clock that goes on only while a batch waits for its time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def wait(self, _ready: Condition, _is_due: Callable[[], bool], seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class TestThreads:
    def test_callers_who_come_while_a_batch_runs_form_the_next_one(self) -> None:
        gate = Gate(double)
        futures = gather(GroupCommit(gate), gate, [1, 2, 3, 4])
        assert [future.result(10) for future in futures] == [2, 4, 6, 8]
        assert gate.calls == [[1], [2, 3, 4]]

    def test_a_batch_takes_at_most_its_size_in_the_order_of_arrival(self) -> None:
        gate = Gate(double)
        sizes: list[int] = []
        group = GroupCommit(gate, max_size=2, on_batch=lambda size, _took_s: sizes.append(size))
        futures = gather(group, gate, [1, 2, 3, 4, 5, 6])
        assert [future.result(10) for future in futures] == [2, 4, 6, 8, 10, 12]
        assert gate.calls == [[1], [2, 3], [4, 5], [6]]
        assert sizes[:3] == [1, 2, 2], "each is observed before the next one runs"

    def test_keys_take_turns_when_more_wait_than_a_batch_takes(self) -> None:
        gate = Gate(double)
        group = GroupCommit(gate, max_size=2, fair_key=lambda item: str(item // 10))
        futures = gather(group, gate, [1, 11, 12, 13, 21])
        assert [future.result(10) for future in futures] == [2, 22, 24, 26, 42]
        assert gate.calls == [[1], [11, 21], [12, 13]]

    def test_an_items_own_error_is_raised_to_its_caller_alone(self) -> None:
        gate = Gate(double_even)
        futures = gather(GroupCommit(gate), gate, [2, 3, 4])
        assert futures[0].result(10) == 4
        with pytest.raises(InvalidRequest, match="odd"):
            futures[1].result(10)
        assert futures[2].result(10) == 8

    def test_an_interrupted_call_is_raised_to_its_batch_and_the_next_one_runs(self) -> None:
        def interrupted(items: Sequence[int]) -> list[int | HeadraceError]:
            if 2 in items:
                raise KeyboardInterrupt
            return list(items)

        gate = Gate(interrupted)
        futures = gather(GroupCommit(gate, max_size=2), gate, [1, 2, 3, 4])
        for future in futures[1:3]:
            with pytest.raises(KeyboardInterrupt):
                future.result(10)
        assert futures[3].result(10) == 4

    def test_none_is_a_result(self) -> None:
        group: GroupCommit[int, None] = GroupCommit(lambda items: [None for _ in items])
        assert group.join(1) is None

    def test_many_threads_each_get_their_own_result_and_none_is_lost(self) -> None:
        sizes: list[int] = []

        def run(items: Sequence[int]) -> list[int | HeadraceError]:
            sizes.append(len(items))
            return [InvalidRequest(str(item)) if item % 7 == 0 else -item for item in items]

        group: GroupCommit[int, int] = GroupCommit(run, max_size=8)

        def call(first: int) -> int:
            for item in range(first, first + 200):
                if item % 7 == 0:
                    with pytest.raises(InvalidRequest, match=str(item)):
                        group.join(item)
                else:
                    assert group.join(item) == -item
            return 200

        with ThreadPoolExecutor(32) as pool:
            assert sum(pool.map(call, range(0, 32_000, 1000), timeout=60)) == 6400
        assert sum(sizes) == 6400, "each item is run once"
        assert max(sizes) <= 8
        assert not group.waiting

    def test_its_thread_ends_when_no_caller_comes_and_starts_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("headrace.store.db.group_commit.IDLE_S", 0.01)
        others = threads_named("group-commit")
        group: GroupCommit[int, int] = GroupCommit(double)
        for item in (1, 2):
            assert group.join(item) == item * 2
            while threads_named("group-commit") - others:
                threading.Event().wait(0.001)


class TestIsolation:
    def test_a_bad_item_that_breaks_the_call_fails_alone(self) -> None:
        gate = Gate(lambda items: [10 // item for item in items])
        futures = gather(GroupCommit(isolated(gate)), gate, [1, 2, 0, 5])
        assert [futures[i].result(10) for i in (0, 1, 3)] == [10, 5, 2]
        with pytest.raises(ZeroDivisionError):
            futures[2].result(10)
        assert gate.calls == [[1], [2, 0, 5], [2], [0], [5]]

    def test_an_absent_service_is_raised_to_all_without_another_call(self) -> None:
        def away(items: Sequence[int]) -> list[int | HeadraceError]:
            raise Unavailable("away")

        gate = Gate(away)
        for future in gather(GroupCommit(isolated(gate)), gate, [1, 2, 3]):
            with pytest.raises(Unavailable, match="away"):
                future.result(10)
        assert gate.calls == [[1], [2, 3]]

    def test_a_service_that_goes_away_while_items_are_tried_alone_is_not_called_for_each(self) -> None:
        def dying(items: Sequence[int]) -> list[int | HeadraceError]:
            if items == [3]:
                raise Unavailable("away")
            return [10 // item for item in items]

        gate = Gate(dying)
        futures = gather(GroupCommit(isolated(gate)), gate, [1, 2, 3, 0, 5])
        assert futures[1].result(10) == 5
        for future in futures[2:]:
            with pytest.raises(Unavailable):
                future.result(10)
        assert gate.calls == [[1], [2, 3, 0, 5], [2], [3]]

    def test_too_few_outcomes_are_an_error_and_no_caller_is_left_waiting(self) -> None:
        gate = Gate(lambda items: [1] if len(items) == 1 else [])
        futures = gather(GroupCommit(isolated(gate)), gate, [7, 8, 9])
        assert [future.result(10) for future in futures] == [1, 1, 1], "each is tried alone after the short answer"
        strict: GroupCommit[int, int] = GroupCommit(lambda items: [])
        with pytest.raises(ValueError, match="0 outcomes"):
            strict.join(1)


class TestPace:
    def test_batches_start_apart_and_no_caller_waits_after_a_pause(self) -> None:
        time = Time()
        group: GroupCommit[int, int] = GroupCommit(double, pace_s=0.5, clock=time.clock, wait=time.wait)
        assert group.join(1) == 2
        assert time.slept == []
        time.now += 0.125
        assert group.join(2) == 4
        assert time.slept == [0.375]
        time.now += 0.5
        assert group.join(3) == 6
        assert time.slept == [0.375]

    def test_callers_who_come_while_a_batch_waits_share_it(self) -> None:
        calls: list[list[int]] = []
        waiting, go = threading.Event(), threading.Event()

        def run(items: Sequence[int]) -> list[int | HeadraceError]:
            calls.append(list(items))
            return double(items)

        def wait(ready: Condition, _is_due: Callable[[], bool], _seconds: float) -> None:
            waiting.set()
            # Not ``go`` alone: the notice of the second caller may wake this when the third one has not come yet.
            assert ready.wait_for(lambda: go.is_set() and len(group.waiting) == 3, 60)

        group: GroupCommit[int, int] = GroupCommit(run, pace_s=0.5, enough=3, clock=lambda: 100.0, wait=wait)
        assert group.join(1) == 2
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(group.join, 2)]
            assert waiting.wait(10)
            futures.append(pool.submit(group.join, 3))
            while len(group.waiting) < 2:
                threading.Event().wait(0.001)
            go.set()
            futures.append(pool.submit(group.join, 4))
            assert [future.result(10) for future in futures] == [4, 6, 8]
        assert [sorted(call) for call in calls] == [[1], [2, 3, 4]]

    def test_a_batch_does_not_wait_when_enough_items_wait(self) -> None:
        gate = Gate(double)
        # The time never comes: only that enough items wait lets a batch start.
        group: GroupCommit[int, int] = GroupCommit(gate, pace_s=3600, enough=3)
        futures = gather(group, gate, [1, 2, 3])
        assert futures[0].result(10) == 2
        assert not futures[1].done()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(group.join, 4).result(10) == 8
        assert [future.result(10) for future in futures[1:]] == [4, 6]
        assert gate.calls == [[1], [2, 3, 4]]

    def test_an_urgent_caller_takes_the_waiting_ones_along_but_not_again_at_once(self) -> None:
        time = Time()
        group: GroupCommit[int, int] = GroupCommit(double, pace_s=0.25, clock=time.clock, wait=time.wait)
        group.join(1)
        assert group.join(2, urgent=True) == 4
        assert time.slept == []
        assert group.join(3, urgent=True) == 6
        assert time.slept == [0.25], "so soon again it waits as every caller"
        time.now += URGENT_EVERY_S
        assert group.join(4, urgent=True) == 8
        assert time.slept == [0.25]
        assert group.join(5) == 10
        assert time.slept == [0.25, 0.25], "it was urgent for one batch"

        gate = Gate(double)
        other: GroupCommit[int, int] = GroupCommit(gate, pace_s=3600)
        futures = gather(other, gate, [1, 2, 3])
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(other.join, 4, urgent=True).result(10) == 8
        assert [future.result(10) for future in futures] == [2, 4, 6]
        assert gate.calls == [[1], [2, 3, 4]]


class TestCoroutines:
    async def test_those_that_come_while_a_call_runs_share_the_next(self) -> None:
        gate = Gate(double_even)
        group: GroupCommit[int, int] = GroupCommit(gate)
        first = asyncio.create_task(group.join_async(2))
        assert await asyncio.to_thread(gate.entered.wait, 10)
        others = [asyncio.create_task(group.join_async(item)) for item in (4, 5, 6)]
        await asyncio.sleep(0)
        gate.opened.set()
        outcomes = await asyncio.gather(first, *others, return_exceptions=True)
        assert (outcomes[:2], outcomes[3]) == ([4, 8], 12)
        assert str(outcomes[2]) == "5 is odd"
        assert gate.calls == [[2], [4, 5, 6]]

    async def test_those_that_come_in_one_turn_of_the_loop_share_a_call(self) -> None:
        gate = Gate(double, opened=True)
        group: GroupCommit[int, int] = GroupCommit(gate)
        assert await asyncio.gather(*map(group.join_async, range(50))) == [2 * item for item in range(50)]
        assert gate.calls == [[*range(50)]]

    async def test_callers_who_come_before_its_thread_runs_start_no_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two threads would run batches side by side."""
        targets: list[Callable[[], None]] = []

        class Late(threading.Thread):
            def start(self) -> None:
                assert self.daemon, "it keeps no process from its end"
                targets.append(super().start)

        monkeypatch.setattr("headrace.store.db.group_commit.Thread", Late)
        group: GroupCommit[int, int] = GroupCommit(double)
        waiting = []
        for item in (2, 4):
            waiting.append(asyncio.create_task(group.join_async(item)))
            for _ in range(3):
                await asyncio.sleep(0)  # it waits, and then it wakes the thread
        (start,) = targets
        start()
        assert await asyncio.gather(*waiting) == [4, 8]

    async def test_a_batch_starts_when_enough_items_wait_or_its_time_has_come(self) -> None:
        gate = Gate(double, opened=True)
        group: GroupCommit[int, int] = GroupCommit(gate, pace_s=3600, enough=3)
        assert await asyncio.wait_for(group.join_async(2), 10) == 4
        waiting = [asyncio.create_task(group.join_async(item)) for item in (4, 6)]
        done, _ = await asyncio.wait(waiting, timeout=0.05)
        assert not done, "it is not time yet, and two are not enough"
        assert await asyncio.wait_for(group.join_async(8), 10) == 16
        assert await asyncio.gather(*waiting) == [8, 12]
        assert gate.calls == [[2], [4, 6, 8]]
        timed: GroupCommit[int, int] = GroupCommit(gate, pace_s=0.05, enough=99)
        assert [await asyncio.wait_for(timed.join_async(item), 10) for item in (2, 4)] == [4, 8]

    async def test_an_urgent_one_does_not_wait_but_not_again_at_once(self) -> None:
        # The clock of the test: no pause of the machine makes it time for the next urgent one.
        time = Time()
        group: GroupCommit[int, int] = GroupCommit(double, pace_s=3600, enough=99, clock=time.clock)
        assert await asyncio.wait_for(group.join_async(2), 10) == 4
        waiting = asyncio.create_task(group.join_async(4))
        await asyncio.sleep(0)
        assert await asyncio.wait_for(group.join_async(6, urgent=True), 10) == 12
        assert await asyncio.wait_for(waiting, 10) == 8, "it goes along"
        time.now += URGENT_EVERY_S / 2
        late = asyncio.create_task(group.join_async(8, urgent=True))
        done, _ = await asyncio.wait([late], timeout=0.05)
        assert not done
        time.now += URGENT_EVERY_S
        assert await asyncio.wait_for(group.join_async(10, urgent=True), 10) == 20
        assert await asyncio.wait_for(late, 10) == 16

    async def test_an_error_of_the_call_is_raised_to_each_as_its_own(self) -> None:
        def run(items: Sequence[int]) -> list[int | Exception]:
            raise Unavailable("away", retry_after_s=7)

        group: GroupCommit[int, int] = GroupCommit(run)
        errors = await asyncio.gather(*(group.join_async(n) for n in range(3)), return_exceptions=True)
        assert [(str(error), getattr(error, "retry_after_s", None)) for error in errors] == [("away", 7)] * 3
        assert len({id(error) for error in errors}) == 3
        with pytest.raises(Unavailable):
            await group.join_async(4)

    async def test_one_that_leaves_disturbs_no_other(self) -> None:
        group: GroupCommit[int, int] = GroupCommit(double)
        leaving, staying = (asyncio.create_task(group.join_async(item)) for item in (2, 4))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying == 8
        assert await group.join_async(6) == 12

"""Coroutines that ask together share a call, and each gets its own outcome."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from producer_api.caches.async_group_commit import Gathering
from store.db.group_commit import HURRY_S
from store.errors import InvalidRequest, Unavailable


class Calls:
    """A ``run`` that notes its calls and, until it is opened, stops in the first of them."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.entered, self.opened = threading.Event(), threading.Event()
        self.opened.set()

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.calls.append(list(items))
        self.entered.set()
        assert self.opened.wait(10)
        return [InvalidRequest(f"{item} is odd") if item % 2 else item * 2 for item in items]


async def test_who_comes_while_a_call_runs_shares_the_next() -> None:
    run = Calls()
    run.opened.clear()
    gathering: Gathering[int, int] = Gathering(run, pace_s=0, enough=99)
    first = asyncio.create_task(gathering.join(2))
    assert await asyncio.to_thread(run.entered.wait, 10)
    others = [asyncio.create_task(gathering.join(item)) for item in (4, 5, 6)]
    await asyncio.sleep(0)
    run.opened.set()
    outcomes = await asyncio.gather(first, *others, return_exceptions=True)
    assert (outcomes[:2], outcomes[3]) == ([4, 8], 12)
    assert str(outcomes[2]) == "5 is odd"
    assert run.calls == [[2], [4, 5, 6]]


async def test_a_wave_begins_when_enough_wait_or_its_time_has_come() -> None:
    run = Calls()
    gathering: Gathering[int, int] = Gathering(run, pace_s=3600, enough=3)
    assert await asyncio.wait_for(gathering.join(2), 10) == 4
    waiting = [asyncio.create_task(gathering.join(item)) for item in (4, 6)]
    done, _ = await asyncio.wait(waiting, timeout=0.05)
    assert not done, "it is not time yet, and two are not enough"
    assert await asyncio.wait_for(gathering.join(8), 10) == 16
    assert await asyncio.gather(*waiting) == [8, 12]
    assert run.calls == [[2], [4, 6, 8]]
    timed: Gathering[int, int] = Gathering(run, pace_s=0.05, enough=99)
    assert [await asyncio.wait_for(timed.join(item), 10) for item in (2, 4)] == [4, 8]


async def test_who_hurries_is_not_kept_waiting_but_not_again_at_once() -> None:
    run = Calls()
    gathering: Gathering[int, int] = Gathering(run, pace_s=3600, enough=99)
    assert await asyncio.wait_for(gathering.join(2), 10) == 4
    waiting = asyncio.create_task(gathering.join(4))
    await asyncio.sleep(0)
    assert await asyncio.wait_for(gathering.join(6, hurries=True), 10) == 12
    assert await asyncio.wait_for(waiting, 10) == 8, "he goes along"
    late = asyncio.create_task(gathering.join(8, hurries=True))
    done, _ = await asyncio.wait([late], timeout=HURRY_S / 5)
    assert not done
    late.cancel()


async def test_what_the_call_raises_is_told_to_each_as_his_own() -> None:
    def run(items: Sequence[int]) -> list[int | Exception]:
        raise Unavailable("away", retry_after_s=7)

    gathering: Gathering[int, int] = Gathering(run, pace_s=0, enough=99)
    errors = await asyncio.gather(*(gathering.join(n) for n in range(3)), return_exceptions=True)
    assert [(str(error), getattr(error, "retry_after_s", None)) for error in errors] == [("away", 7)] * 3
    assert len({id(error) for error in errors}) == 3
    with pytest.raises(Unavailable):
        await gathering.join(4)


async def test_who_leaves_disturbs_nobody() -> None:
    run = Calls()
    gathering: Gathering[int, int] = Gathering(run, pace_s=0, enough=99)
    leaving, staying = (asyncio.create_task(gathering.join(item)) for item in (2, 4))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == 8
    assert await gathering.join(6) == 12

"""Turns of tenants: how many pieces are at work, and whose is next."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from headrace.prompts.sandbox.turns import SandboxBusy, Turns
from tests.processes import wait_for


class Work:
    """Pieces of work on threads, each of which has its place until it is told to end."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.begun: list[str] = []
        self._ends: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def add(self, *names: str) -> None:
        """Ask for a place for each; the first letter is the tenant."""
        for name in names:
            self._ends[name] = threading.Event()
            self._threads.append(threading.Thread(target=self._run, args=(name,)))
            self._threads[-1].start()

    def _run(self, name: str) -> None:
        with self._turns.turn(name[0]):
            self.begun.append(name)
            self._ends[name].wait(60)

    def end(self, name: str) -> None:
        self._ends[name].set()

    def close(self) -> None:
        for end in self._ends.values():
            end.set()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work(Turns(3))
    yield work
    work.close()


def test_no_tenant_has_all_places_and_the_next_turn_is_of_the_one_with_the_fewest(work: Work) -> None:
    work.add("a1", "a2")
    wait_for(lambda: len(work.begun) == 2, "two places are of the first tenant")
    work.add("a3")
    work.add("b1")
    wait_for(lambda: len(work.begun) == 3, "the last place is of another tenant")
    assert work.begun[2] == "b1"
    work.add("c1", "b2")
    work.end("a1")
    wait_for(lambda: len(work.begun) == 4, "a place was free")
    assert work.begun[3] == "c1", "it has none, and the others have one each"
    work.end("c1")
    wait_for(lambda: len(work.begun) == 5, "a place was free")
    assert work.begun[4] == "a3", "of two with one each, the turn of the first was the longest time ago"


def test_a_piece_without_a_place_is_not_begun_after_a_while() -> None:
    turns = Turns(2)
    with ExitStack() as held:
        held.enter_context(turns.turn("a"))
        with pytest.raises(SandboxBusy), turns.turn("a", wait_s=0.05):
            pytest.fail("all but one place are of this tenant")
        held.enter_context(turns.turn("b"))
        with pytest.raises(SandboxBusy), turns.turn("c", wait_s=0.05):
            pytest.fail("there is no place")
    with turns.turn("c"):
        pass


def test_coroutines_and_threads_have_the_same_places() -> None:
    turns, let_go = Turns(2, most_of_one=1), threading.Event()
    order: list[str] = []

    async def run() -> None:
        def call(name: str) -> None:
            order.append(name)
            assert let_go.wait(60)

        with turns.turn("a"):
            tasks = [asyncio.create_task(turns.run("a", lambda n=n: call(f"a{n}"))) for n in range(3)]
            tasks.append(asyncio.create_task(turns.run("b", lambda: call("b"))))
            await asyncio.to_thread(wait_for, lambda: order, "a call has begun")
            assert order == ["b"], "the one place of the first tenant is a thread's"
            tasks[0].cancel()
            await asyncio.wait([tasks[0]])
        await asyncio.to_thread(wait_for, lambda: len(order) == 2, "the place of the thread is free")
        assert order == ["b", "a1"], "the cancelled wait has left no gap"
        let_go.set()
        await asyncio.gather(*tasks[1:])
        with pytest.raises(ZeroDivisionError):
            await turns.run("c", lambda: 1 / 0)

    asyncio.run(run())
    assert order == ["b", "a1", "a2"]
    assert not turns.waiting
    assert not turns.at_work, "tenants without pieces are forgotten"

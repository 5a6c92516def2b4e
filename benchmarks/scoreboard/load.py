"""Submits the orders of a round, asks or reads until each has ended, and cancels some; records the answers alone."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import httpx2

from benchmarks.scoreboard.callers import Away, Caller, Event, NotReached

_FIRST_POLL_S, _LONGEST_POLL_S = 0.3, 1.5
_CALL_S = 15.0
_LONGEST_KNOCK_S = 30.0
_CANCEL_TOKENS, _CANCEL_AFTER_S = 250, 2.0
_TRICKLE_S = 1.0


@dataclass(frozen=True)
class Order:
    """What a customer wants. ``reads``: by a stream, where there is one. ``cancels``: after two seconds."""

    name: str
    num: int
    at_s: float
    reads: bool = False
    cancels: bool = False


@dataclass
class Told:
    """An accepted job as its owner sees it; times of the monotonic clock. ``state`` None: no end was reported.

    ``cancel_at``: when its owner asked for it with success.
    """

    order: Order
    accepted_at: float
    state: str | None = None
    ended_at: float | None = None
    text: str | None = None
    cancel_at: float | None = None
    events: list[Event] = field(default_factory=list)
    reads: bool = False
    has_stream_end: bool = False


@dataclass
class Log:
    """Everything that was answered. ``refused``: submits that got an error, or no answer: they are not repeated."""

    jobs: list[Told] = field(default_factory=list)
    refused: int = 0

    @property
    def num_open(self) -> int:
        """Accepted jobs without a known end, and streams without theirs."""
        return sum(told.state is None or (told.reads and not told.has_stream_end) for told in list(self.jobs))


def orders(seed: int, rate: float, seconds: float) -> Iterator[Order]:
    """Yield a round's orders: 0.4 to 2 s long, 3 % 4 s; one in 30 is of 10 s and cancelled; a quarter is read."""
    draw = random.Random(seed)
    at_s, number = 0.0, 0
    while (at_s := at_s + draw.expovariate(rate)) < seconds:
        number += 1
        kind, num, reads = draw.random(), draw.randint(10, 50), draw.random() < 0.25
        name = f"order-{seed}-{number}"
        if kind < 1 / 30:
            yield Order(name, _CANCEL_TOKENS, at_s, cancels=True)
        else:
            yield Order(name, 100 if kind < 1 / 30 + 0.03 else num, at_s, reads=reads)


class Load:
    """One round's customers. After the last order one more comes each second, unrecorded, until ``leave``."""

    def __init__(self, make: Callable[[httpx2.AsyncClient], Caller], wanted: list[Order]) -> None:
        self.log = Log()
        self.is_submitting = True
        self._make = make
        self._wanted = wanted
        self._num_submitted = 0
        self._loop = asyncio.new_event_loop()
        self._leave = asyncio.Event()
        self._all_submitted = asyncio.Event()

    def run(self) -> None:
        """Work until ``leave`` is called; meant for a thread."""
        self._loop.run_until_complete(self._run())
        self._loop.close()

    def leave(self) -> None:
        """Stop asking. From any thread."""
        self._loop.call_soon_threadsafe(self._leave.set)

    async def _run(self) -> None:
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(timeout=_CALL_S, limits=limits, trust_env=False) as http:
            caller = self._make(http)
            tasks = [asyncio.create_task(self._job(caller, order)) for order in self._wanted]
            await self._all_submitted.wait()
            self.is_submitting = False
            tasks.append(asyncio.create_task(self._trickle(caller)))
            await self._leave.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _trickle(self, caller: Caller) -> None:
        """Some systems look after lost messages only while new ones come."""
        while True:
            with suppress(Away):
                await caller.submit("trickle", 10)
            await asyncio.sleep(_TRICKLE_S)

    async def _job(self, caller: Caller, order: Order) -> None:
        await asyncio.sleep(order.at_s)
        job_id = await _submit(caller, order)
        self._num_submitted += 1
        if self._num_submitted == len(self._wanted):
            self._all_submitted.set()
        if job_id is None:
            self.log.refused += 1
            return
        told = Told(order, time.monotonic(), reads=order.reads and caller.streams)
        self.log.jobs.append(told)
        beside = []
        if told.reads:
            beside.append(asyncio.create_task(_read(caller, job_id, told)))
        if order.cancels and caller.cancels:
            beside.append(asyncio.create_task(_cancel(caller, job_id, told)))
        try:
            await _poll(caller, job_id, told)
            await asyncio.gather(*beside)
        finally:
            for task in beside:
                task.cancel()


async def _submit(caller: Caller, order: Order) -> str | None:
    """Submit once; again only while nobody listens, since then no job can come of it twice. None if it was refused."""
    deadline = time.monotonic() + _LONGEST_KNOCK_S
    while True:
        try:
            return await caller.submit(order.name, order.num)
        except NotReached:
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.5)
        except Away:
            return None


async def _poll(caller: Caller, job_id: str, told: Told) -> None:
    pause_s = _FIRST_POLL_S
    while told.state is None:
        await asyncio.sleep(pause_s)
        pause_s = min(_LONGEST_POLL_S, pause_s * 1.3)
        with suppress(Away):
            look = await caller.look(job_id)
            if look.state is not None:
                told.text, told.ended_at, told.state = look.text, time.monotonic(), look.state


async def _cancel(caller: Caller, job_id: str, told: Told) -> None:
    await asyncio.sleep(_CANCEL_AFTER_S)
    while told.state is None:
        with suppress(Away):
            asked_at = time.monotonic()
            await caller.cancel(job_id)
            told.cancel_at = asked_at
            return
        await asyncio.sleep(0.5)


async def _read(caller: Caller, job_id: str, told: Told) -> None:
    """Read to the stream's end, on from the last event after each break."""
    while not told.has_stream_end:
        with suppress(Away):
            last = told.events[-1].id if told.events else ""
            async for event in caller.read(job_id, last):
                told.events.append(event)
                if event.kind == "end":
                    told.has_stream_end = True
                    break
        await asyncio.sleep(0.3)

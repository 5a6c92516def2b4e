"""The wave of ``store.db.group_commit`` for callers that are coroutines: whoever asks while a call runs shares the next
one.

Nobody parks a thread while he waits: a wave costs one hop to a thread and one back, however many it carries. Knows the
event loop and outcomes; knows nothing of what the call does.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from store.db.group_commit import HURRY_S
from store.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")

_MOST = 256

SELDOM_S = 0.1
"""A tenant that has sent nothing for so long need not wait for the time of the next wave beside one that floods."""
_MOST_VISITS = 10_000


class Gathering(Generic[T, R]):
    """Combines concurrent ``join`` calls into calls of ``run``, one at a time, each in a thread.

    A wave begins at once if none began within ``pace_s``, and otherwise when that time has passed, ``enough`` wait, or
    somebody ``hurries``: that is granted once in HURRY_S, so that it costs few waves.
    ``run`` returns an outcome for each item, in order; what it raises goes to everybody.
    """

    def __init__(self, run: Callable[[Sequence[T]], Sequence[R | Exception]], *, pace_s: float, enough: int) -> None:
        self._run = run
        self._pace_s = pace_s
        self._enough = enough
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._is_enough: asyncio.Event | None = None
        self._next_at = 0.0
        self._hurried = False
        self._hurry_at = 0.0

    async def join(self, item: T, *, hurries: bool = False) -> R:
        """Wait for the wave that carries ``item``; return or raise its own outcome."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._hurried = self._hurried or (hurries and self._may_hurry())
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve_all())
        elif self._is_enough is not None and (self._hurried or len(self._waiting) >= self._enough):
            self._is_enough.set()
        return await future

    def _may_hurry(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now < self._hurry_at:
            return False
        self._hurry_at = now + HURRY_S
        return True

    async def _serve_all(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                wave = [self._waiting.popleft() for _ in range(min(_MOST, len(self._waiting)))]
                await self._serve(wave)
        finally:
            self._serving = None

    async def _gather(self) -> None:
        """Wait for the time of the next wave, or until there is enough for one."""
        loop = asyncio.get_running_loop()
        early_s = self._next_at - loop.time()
        if early_s > 0 and len(self._waiting) < self._enough and not self._hurried:
            self._is_enough = asyncio.Event()
            timer = loop.call_later(early_s, self._is_enough.set)
            try:
                await self._is_enough.wait()
            finally:
                timer.cancel()
                self._is_enough = None
        self._hurried = False
        self._next_at = loop.time() + self._pace_s

    async def _serve(self, wave: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        outcomes: Sequence[R | Exception]
        try:
            outcomes = await run_in_threadpool(self._run, [item for item, _ in wave])
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who asked
            outcomes = [error] * len(wave)
        for (_, future), outcome in zip(wave, outcomes, strict=True):
            if future.done():
                continue  # he has left
            if isinstance(outcome, Exception):
                future.set_exception(own_copy(outcome))
            else:
                future.set_result(outcome)


def own_copy(error: Exception) -> Exception:
    """Return an instance of its own for each waiter: raising one object in many tasks would chain their tracebacks."""
    if isinstance(error, Unavailable):
        return Unavailable(error.message, retry_after_s=error.retry_after_s, code=error.code, param=error.param)
    return error


class Visits:
    """When each tenant was here last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def is_seldom(self, tenant_id: str) -> bool:
        """Note a visit; True if the one before was long ago."""
        now = self._clock()
        last = self._last.pop(tenant_id, -math.inf)
        if len(self._last) >= _MOST_VISITS:
            self._last.clear()
        self._last[tenant_id] = now
        return now - last >= SELDOM_S

"""Group commit: concurrent callers share one call, as a database groups the commits of concurrent transactions.

A batch costs one commit or one query, however many items it carries. While one batch runs, the next one fills:

    caller 1 ──▶ batch [1] ──▶ outcome
    caller 2 ─────── waits ──▶ batch [2 3] ──▶ outcome
    caller 3 ─────── waits ──▶ batch [2 3] ──▶ outcome

Under load, batches start ``pace_s`` apart, or earlier when ``enough`` items wait or an urgent caller comes. A caller
that comes after a pause does not wait. Callers are threads or coroutines. All batches run in one thread, one at a time,
in the order of arrival.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from typing import Generic, TypeVar

from headrace.store.errors import HeadraceError, Unavailable

T = TypeVar("T")
R = TypeVar("R")

OnBatch = Callable[[int, float], None]
"""Gets the size and the seconds of a batch that has run."""


def unobserved(_size: int, _took_s: float) -> None:
    """Ignore a batch."""


URGENT_EVERY_S = 0.05
"""Only one urgent caller in this time starts a batch early, so that urgent callers cost few batches."""

IDLE_S = 5.0
"""The thread ends when no caller has come for this long."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter(Generic[T, R]):
    """One waiting caller. A thread waits at a queue, which costs half as much as an Event; a coroutine at a future."""

    item: T
    reply: "SimpleQueue[R | BaseException] | asyncio.Future[R]"


class GroupCommit(Generic[T, R]):
    """Combines concurrent calls into calls of ``run`` with at most ``max_size`` items.

    ``run`` returns a result or an error for each item, in their order; what it raises goes to every caller of the
    batch. With ``fair_key`` the keys take turns when more than ``max_size`` items wait, so that a key with many items
    does not delay the others. ``on_batch`` is called after each batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R | Exception]],
        *,
        max_size: int = 256,
        pace_s: float = 0.0,
        enough: float = 256,
        fair_key: Callable[[T], str] | None = None,
        on_batch: OnBatch = unobserved,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[Condition, Callable[[], bool], float], object] = Condition.wait_for,
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._pace_s = pace_s
        self._enough = enough
        self._fair_key = fair_key
        self._on_batch = on_batch
        self._clock = clock
        self._wait = wait
        self._ready = Condition(Lock())
        # Everything below is read and written under the lock of ``_ready``.
        self.waiting: deque[_Waiter[T, R]] = deque()
        self._has_thread = False
        self._is_idle = False
        self._has_urgent = False
        self._next_at = -math.inf
        self._next_urgent_at = -math.inf

    def join(self, item: T, *, urgent: bool = False) -> R:
        """Block until the batch with ``item`` has run; return the item's result or raise its error."""
        reply: SimpleQueue[R | BaseException] = SimpleQueue()
        self._add(_Waiter(item, reply), urgent=urgent)
        self._wake()
        outcome = reply.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def join_async(self, item: T, *, urgent: bool = False) -> R:
        """Do what ``join`` does without blocking the event loop: a batch costs one hop to the thread and one back."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._add(_Waiter(item, future), urgent=urgent)
        # After the other coroutines that are ready now, so that they share the batch.
        loop.call_soon(self._wake)
        return await future

    def _add(self, call: _Waiter[T, R], *, urgent: bool) -> None:
        with self._ready:
            self.waiting.append(call)
            if urgent and (now := self._clock()) >= self._next_urgent_at:
                self._next_urgent_at = now + URGENT_EVERY_S
                self._has_urgent = True

    def _wake(self) -> None:
        with self._ready:
            if not self._has_thread and self.waiting:
                Thread(target=self._run_batches, name="group-commit", daemon=True).start()
                self._has_thread = True
            elif self._is_idle or self._is_due():
                self._ready.notify()

    def _is_due(self) -> bool:
        """True if the next batch need not wait for its time."""
        return self._has_urgent or len(self.waiting) >= self._enough

    def _run_batches(self) -> None:
        while batch := self._next_batch():
            began = time.perf_counter()
            outcomes = self._outcomes([call.item for call in batch])
            took_s = time.perf_counter() - began
            _deliver(batch, outcomes)
            self._on_batch(len(batch), took_s)

    def _next_batch(self) -> list[_Waiter[T, R]]:
        """Wait for the next batch and take it; return an empty list when the thread shall end."""
        with self._ready:
            self._is_idle = True
            self._has_thread = bool(self._ready.wait_for(lambda: self.waiting, IDLE_S))
            self._is_idle = False
            if not self._has_thread:
                return []
            early_s = self._next_at - self._clock()
            if early_s > 0 and not self._is_due():
                self._wait(self._ready, self._is_due, early_s)
            self._has_urgent = False
            self._next_at = self._clock() + self._pace_s
            return self._take()

    def _take(self) -> list[_Waiter[T, R]]:
        if self._fair_key is not None and len(self.waiting) > self._max_size:
            self.waiting = deque(_in_turns(self.waiting, self._fair_key))
        return [self.waiting.popleft() for _ in range(min(self._max_size, len(self.waiting)))]

    def _outcomes(self, items: Sequence[T]) -> Sequence[R | BaseException]:
        try:
            outcomes = self._run(items)
            _check_length(items, outcomes)
        except BaseException as error:  # noqa: BLE001 - every caller gets it raised, and the thread must live on
            return [error] * len(items)
        return outcomes


def _in_turns(calls: Iterable[_Waiter[T, R]], key_of: Callable[[T], str]) -> list[_Waiter[T, R]]:
    """Return the first call of each key, then the second of each, and so on."""
    num_of: Counter[str] = Counter()

    def turn(call: _Waiter[T, R]) -> int:
        num_of[key := key_of(call.item)] += 1
        return num_of[key]

    return sorted(calls, key=turn)


def isolated(run: Callable[[Sequence[T]], Sequence[R | Exception]]) -> Callable[[Sequence[T]], list[R | Exception]]:
    """Return ``run`` with failures isolated: if the call fails, each item is tried alone.

    Unavailable is an outage. It goes to every item that was not tried yet, and no further call is made.
    """

    def run_isolated(items: Sequence[T]) -> list[R | Exception]:
        try:
            outcomes = run(items)
            _check_length(items, outcomes)
        except Unavailable as error:
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001 - it belongs to the callers, who get it raised
            return [error] if len(items) == 1 else run_singly(items)
        return list(outcomes)

    def run_singly(items: Sequence[T]) -> list[R | Exception]:
        outcomes: list[R | Exception] = []
        for item in items:
            outcomes += run_isolated([item])
            if isinstance(outage := outcomes[-1], Unavailable):
                outcomes += [outage] * (len(items) - len(outcomes))
                break
        return outcomes

    return run_isolated


def _check_length(items: Sequence[T], outcomes: Sequence[object]) -> None:
    if len(items) != len(outcomes):
        raise ValueError(f"{len(outcomes)} outcomes for {len(items)} items")


def _deliver(batch: Sequence[_Waiter[T, R]], outcomes: Sequence[R | BaseException]) -> None:
    """Wake the callers: each thread at its queue, the coroutines of an event loop with one call into it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[R], R | BaseException]]] = {}
    for call, shared in zip(batch, outcomes, strict=True):
        outcome = _own_copy(shared)
        if isinstance(call.reply, SimpleQueue):
            call.reply.put(outcome)
        else:
            by_loop.setdefault(call.reply.get_loop(), []).append((call.reply, outcome))
    for loop, settled in by_loop.items():
        with suppress(RuntimeError):  # the loop was closed, and its callers with it
            loop.call_soon_threadsafe(_settle, settled)


def _settle(settled: Sequence[tuple[asyncio.Future[R], R | BaseException]]) -> None:
    for future, outcome in settled:
        if future.done():
            continue  # its caller was cancelled
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _own_copy(outcome: R | BaseException) -> R | BaseException:
    """Copy an error, because one object that is raised by many callers would chain their tracebacks."""
    if not isinstance(outcome, HeadraceError):
        return outcome
    copied = type(outcome).__new__(type(outcome))
    copied.args, copied.__cause__ = outcome.args, outcome.__cause__
    copied.__dict__.update(outcome.__dict__)
    return copied

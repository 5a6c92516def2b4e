"""Waves: callers that come at the same time are combined into one call, as a database combines commits.

Knows threads and outcomes; knows nothing of what the call does. While one wave runs, the next gathers:

    caller 1 ──▶ leads [1] ───────▶ outcome, names 2 the next leader
    caller 2 ──────── waits ──────▶ leads [2 3 4] ───▶ …
    caller 3 ──────── waits ──────────────────────▶ outcome
    caller 4 ──────── waits ──────────────────────▶ outcome

Invariant, kept under the lock: if anyone waits, somebody leads. Seats are served in the order they were taken, and a
leader serves its own wave only, so nobody leads for ever.

A wave costs a commit, however many it carries. So under load a leader first lets others gather: waves begin at least
``pace_s`` apart. Whoever comes when none has begun for that long is not kept waiting.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from threading import Event, Lock
from typing import Generic, TypeVar

from store.errors import HeadraceError, Unavailable

T = TypeVar("T")
R = TypeVar("R")


class _Seat(Generic[T, R]):
    """One waiting caller. Woken either with an outcome, or without one to lead the next wave."""

    def __init__(self, item: T) -> None:
        self.item = item
        self.woken = Event()
        self.results: list[R] = []
        self.error: BaseException | None = None

    @property
    def is_served(self) -> bool:
        return bool(self.results) or self.error is not None

    def take(self) -> R:
        if self.error is not None:
            raise self.error
        return self.results[0]


class Wave(Generic[T, R]):
    """Combines concurrent ``join`` calls into calls of ``run`` with at most ``max_size`` items, one at a time."""

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R | HeadraceError]],
        max_size: int = 256,
        *,
        pace_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._pace_s = pace_s
        self._clock = clock
        self._sleep = sleep
        self._next_at = 0.0
        self._lock = Lock()
        self._waiting: deque[_Seat[T, R]] = deque()
        self._led = False

    def join(self, item: T) -> R:
        """Wait for the wave that carries ``item`` and return its own result.

        Raises the item's own error. If the whole call fails, each item is tried alone, so that a bad one fails alone;
        Unavailable is nobody's fault and goes to everyone at once.
        """
        seat: _Seat[T, R] = _Seat(item)
        with self._lock:
            self._waiting.append(seat)
            leads = not self._led
            self._led = True
        if not leads:
            seat.woken.wait()
        if not seat.is_served:
            self._lead()
        return seat.take()

    def _lead(self) -> None:
        self._gather()
        with self._lock:
            seats = list(islice(self._waiting, self._max_size))
            for _ in seats:
                self._waiting.popleft()
        try:
            self._serve(seats)
        except BaseException as error:
            self._tell([seat for seat in seats if not seat.is_served], error)
            raise
        finally:
            self._hand_over()
            for seat in seats:
                seat.woken.set()

    def _gather(self) -> None:
        """Wait for the time of the next wave; only the leader is here, so the time is nobody else's to change."""
        if self._pace_s:
            if (early_s := self._next_at - self._clock()) > 0:
                self._sleep(early_s)
            self._next_at = self._clock() + self._pace_s

    def _hand_over(self) -> None:
        with self._lock:
            self._led = bool(self._waiting)
            if self._led:
                self._waiting[0].woken.set()

    def _serve(self, seats: list[_Seat[T, R]]) -> None:
        try:
            self._record(seats, self._run([seat.item for seat in seats]))
        except Unavailable as error:
            self._tell(seats, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the callers, who get it raised
            if len(seats) == 1:
                self._tell(seats, error)
            else:
                self._serve_singly(seats)

    def _serve_singly(self, seats: list[_Seat[T, R]]) -> None:
        for position, seat in enumerate(seats, start=1):
            self._serve([seat])
            if isinstance(seat.error, Unavailable):
                self._tell(seats[position:], seat.error)
                return

    def _record(self, seats: list[_Seat[T, R]], outcomes: Sequence[R | HeadraceError]) -> None:
        for seat, outcome in zip(seats, outcomes, strict=True):
            if isinstance(outcome, HeadraceError):
                seat.error = outcome
            else:
                seat.results.append(outcome)

    @staticmethod
    def _tell(seats: list[_Seat[T, R]], error: BaseException) -> None:
        for seat in seats:
            seat.error = error

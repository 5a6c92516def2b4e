"""Waves: callers that come at the same time are combined into one call, as a database combines commits.

Knows threads and outcomes; knows nothing of what the call does. While one wave runs, the next gathers:

    caller 1 ──▶ leads [1] ───────▶ outcome, names 2 the next leader
    caller 2 ──────── waits ──────▶ leads [2 3 4] ───▶ …
    caller 3 ──────── waits ──────────────────────▶ outcome
    caller 4 ──────── waits ──────────────────────▶ outcome

Invariant, kept under the lock: if anyone waits, somebody leads. Seats are served in the order they were taken, and a
leader serves its own wave only, so nobody leads for ever.

A wave costs a commit, however many it carries. So under load a leader first lets others gather: waves begin ``pace_s``
apart, or as soon as ``enough`` wait or somebody ``hurries``. Whoever comes when none has begun for that long does not
wait.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from queue import SimpleQueue
from threading import Event, Lock
from typing import Generic, TypeVar

from store.errors import HeadraceError, Unavailable

T = TypeVar("T")
R = TypeVar("R")

HURRY_S = 0.05
"""Once in this time somebody who hurries lets a wave begin early, so that it costs few waves."""


class _Bell:
    """What one caller sleeps by. Half the price of an Event, of which a job would need several."""

    def __init__(self) -> None:
        self._rings: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        self._rings.put(None)

    def wait(self) -> None:
        self._rings.get()


class _Seat(Generic[T, R]):
    """One waiting caller. Woken either with an outcome, or without one to lead the next wave."""

    def __init__(self, item: T) -> None:
        self.item = item
        self.woken = _Bell()
        self.leads = False
        self.results: list[R] = []
        self.error: BaseException | None = None

    @property
    def is_served(self) -> bool:
        return bool(self.results) or self.error is not None

    @property
    def outcome(self) -> R | Exception:
        if self.error is None:
            return self.results[0]
        if isinstance(self.error, Exception):
            return self.error
        raise self.error


class Wave(Generic[T, R]):
    """Combines concurrent ``join`` calls into calls of ``run`` with at most ``max_size`` items, one at a time."""

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R | HeadraceError]],
        max_size: int = 256,
        *,
        pace_s: float = 0.0,
        enough: int = 256,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[Event, float], object] = Event.wait,
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._pace_s = pace_s
        self._clock = clock
        self._enough = enough
        self._wait = wait
        self._next_at = 0.0
        self._is_enough = Event()
        self._hurried = False
        self._hurry_at = 0.0
        self._lock = Lock()
        self._waiting: deque[_Seat[T, R]] = deque()
        self._led = False

    def join(self, item: T, *, hurries: bool = False) -> R:
        """Wait for the wave that carries ``item`` and return its own result.

        Raises the item's own error. If the whole call fails, each item is tried alone, so that a bad one fails alone;
        Unavailable is nobody's fault and goes to everyone at once.
        """
        (outcome,) = self.join_all([item], hurries=hurries)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def join_all(self, items: Sequence[T], *, hurries: bool = False) -> list[R | Exception]:
        """Wait for the waves that carry ``items``, in order; return each one's result or error."""
        seats: list[_Seat[T, R]] = [_Seat(item) for item in items]
        with self._lock:
            self._waiting.extend(seats)
            self._hurried = self._hurried or (hurries and self._may_hurry())
            leads = bool(seats) and not self._led
            if leads:
                self._led = seats[0].leads = True
            if not leads and (self._hurried or len(self._waiting) >= self._enough):
                self._is_enough.set()
        try:
            for seat in seats:
                if not leads:
                    seat.woken.wait()
                leads = False
                if not seat.is_served:
                    self._lead()
        except BaseException:
            self._give_up(seats)
            raise
        return [seat.outcome for seat in seats]

    def _may_hurry(self) -> bool:
        now = self._clock()
        if now < self._hurry_at:
            return False
        self._hurry_at = now + HURRY_S
        return True

    def _give_up(self, seats: Sequence[_Seat[T, R]]) -> None:
        """Take the seats of a caller who was interrupted out of the line; if one of them was to lead, the next does."""
        with self._lock:
            was_to_lead = any(seat in self._waiting and seat.leads for seat in seats)
            self._waiting = deque(seat for seat in self._waiting if seat not in seats)
            if was_to_lead:
                self._let_next_lead()

    def _lead(self) -> None:
        self._gather()
        with self._lock:
            seats = list(islice(self._waiting, self._max_size))
            for _ in seats:
                self._waiting.popleft()
            self._hurried = False
        try:
            self._serve(seats)
        except BaseException as error:
            self._tell([seat for seat in seats if not seat.is_served], error)
            raise
        finally:
            self._hand_over()
            for seat in seats:
                seat.woken.ring()

    def _gather(self) -> None:
        """Wait for the time of the next wave, or until enough wait; only the leader is here, so the time is his."""
        if self._pace_s:
            early_s = self._next_at - self._clock()
            if early_s > 0 and not self._has_enough():
                self._wait(self._is_enough, early_s)
            self._next_at = self._clock() + self._pace_s

    def _has_enough(self) -> bool:
        with self._lock:
            self._is_enough.clear()
            return self._hurried or len(self._waiting) >= self._enough

    def _hand_over(self) -> None:
        with self._lock:
            self._let_next_lead()

    def _let_next_lead(self) -> None:
        self._led = bool(self._waiting)
        if self._led:
            self._waiting[0].leads = True
            self._waiting[0].woken.ring()

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

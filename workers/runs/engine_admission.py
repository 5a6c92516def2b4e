"""Admission control: a worker takes a message from Redis only while its engine has room for one more job.

Room is the engine's free slots and KV blocks, minus the jobs that were taken but have not reached the engine yet. The
size of a job is not known before its row is claimed, so the mean of the last jobs stands for it. Until the first job
has reached the engine, jobs are taken one at a time.

A crash suspect (a job that ran when its worker died) runs in isolation: ``reserved`` closes the worker to new jobs
until no other job is left, and ``alone`` runs the suspect. A message that kombu had asked for before waits meanwhile.

Celery asks before it takes a message: ``workers.celery.consumer``. If the answer was no, its event loop is woken when
there is room again.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from math import ceil
from statistics import fmean

from headrace.models.engine.protocol import AnyEngine
from headrace.store.tasks.generate import MAX_SAMPLES


@dataclass(frozen=True, slots=True)
class Need:
    """``count`` jobs, each with ``num_prompt`` tokens and up to ``max_tokens`` more."""

    num_prompt: int
    max_tokens: int
    count: int = 1


class TicketState(Enum):
    """The state of a taken message."""

    BLOCKED = auto()  # not claimed: the engine is reserved for a suspect
    PREPARING = auto()  # claimed and tokenised: counted here, by the mean need
    IN_ENGINE = auto()  # the engine counts its blocks
    OUTSIDE = auto()  # it waits for a program beside the engine, as a reader of files: it uses a thread
    FINISHING = auto()  # its outcome is being written: it uses a thread, and nothing of the engine


class Ticket:
    """One taken message, from the moment Celery has it until its thread is free."""

    def __init__(self, state: TicketState) -> None:
        self.state = state


class LoopWaker:
    """Wakes Celery's event loop from other threads, only if it waits for room.

    Before ``attach`` there is no loop, and waking does nothing.
    """

    def __init__(self) -> None:
        self._wake: Callable[[], None] = _nothing
        self._is_waiting = False

    def attach(self, wake: Callable[[], None]) -> None:
        """Set the function that wakes the loop; called again after each reconnect, which brings a new loop."""
        self._wake = wake

    def wait_for_room(self) -> None:
        """Note that the loop is about to wait for room."""
        self._is_waiting = True

    def found_room(self) -> None:
        """Note that the loop does not wait after all."""
        self._is_waiting = False

    def room_made(self) -> None:
        """Wake the loop if it waits for room."""
        if self._is_waiting:
            self._is_waiting = False
            self._wake()

    def wake(self) -> None:
        """Wake the loop."""
        self._wake()


class EngineAdmission:
    """Counts the jobs that were taken, and decides whether another one may be.

        take ──▶ preparing ──entered──▶ in engine ──left──▶ finishing ──▶ give_back
          └──▶ blocked ─▲ ▲──▶ outside

    Invariant: every ticket is counted in exactly one state until it is given back, in whatever state.
    """

    def __init__(
        self, engine: AnyEngine, *, max_jobs: int, max_slots: int, num_spare: int = 0, waker: LoopWaker | None = None
    ) -> None:
        """``num_spare`` slots besides ``max_slots`` are for the fast lane alone."""
        self._engine = engine
        self._max_jobs = max_jobs
        self._max_slots = max_slots
        self._num_spare = num_spare
        self.waker = waker or LoopWaker()
        self.full = threading.Event()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._here = threading.local()
        self._count = dict.fromkeys(TicketState, 0)
        self._needs: deque[Need] = deque(maxlen=64)
        self._usual: Need | None = None  # the mean of those needs
        self._closed = False
        self._is_reserved = False
        self.num_messages = 0

    @property
    def num_taken(self) -> int:
        """Taken messages that still use a thread."""
        with self._lock:
            return sum(self._count.values())

    @property
    def is_reserved(self) -> bool:
        """True while no job is admitted, because a crash suspect runs in isolation or waits for that."""
        with self._lock:
            return self._is_reserved

    @property
    def choices_at_once(self) -> int:
        """How many choices of one job run at the same time: at most half of the slots, so that other jobs run too."""
        return max(1, min(MAX_SAMPLES, self._max_slots // 2))

    def has_credit(self) -> bool:
        """Return True if one more message may be taken; if not, the loop is woken when there may be room."""
        # Noted before the check, so that room made during the check is not missed.
        self.waker.wait_for_room()
        if not self.has_room():
            self.full.set()
            return False
        self.waker.found_room()
        return True

    def has_room(self) -> bool:
        """Return True if one more job may be taken; the loop is not woken later if not."""
        return self._has_room(self._max_slots)

    @property
    def is_able(self) -> bool:
        """True if the engine takes requests now; False while its inference server is away or runs something else."""
        return self._engine.why_not is None

    @property
    def can_begin(self) -> bool:
        """True if the engine takes a request now, of any size; False also while its inference server is silent."""
        return self._engine.can_admit(1, 1)

    def has_spare_room(self) -> bool:
        """Return True if one more job of the fast lane may be taken."""
        return self._has_room(self._max_slots + self._num_spare, is_ahead=True)

    def pause(self, timeout_s: float) -> None:
        """Wait for a change, at most ``timeout_s``."""
        with self._changed:
            self._changed.wait(timeout_s)

    def _has_room(self, max_slots: int, *, is_ahead: bool = False) -> bool:
        need = self._need_of_one_more(max_slots)
        return need is not None and self._engine.can_admit(
            need.num_prompt, need.max_tokens, count=need.count, is_ahead=is_ahead
        )

    def take(self) -> Ticket:
        """Note that a message was taken."""
        with self._lock:
            self.num_messages += 1
            return self._new_ticket(TicketState.BLOCKED if self._is_reserved else TicketState.PREPARING)

    def take_without_message(self) -> Ticket | None:
        """Take a ticket for a job that comes without a message; None if there is no room for it."""
        if not self.has_room():
            return None
        with self._lock:
            return None if self._is_reserved or self._closed else self._new_ticket(TicketState.PREPARING)

    def wait_for_turn(self) -> bool:
        """Wait while the engine is reserved for a suspect; False if the worker stops before the suspect has ended."""
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is None or ticket.state is not TicketState.BLOCKED:
            return True
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._is_reserved)
            if self._is_reserved:
                return False
            self._put(ticket, TicketState.PREPARING)
            return True

    @contextmanager
    def reserved(self, *, gap_within_s: float | None = None) -> Iterator[bool]:
        """Admit no jobs during the block, except the caller's by ``alone``.

        With ``gap_within_s`` the engine is reserved at the first moment within that time at which no admitted job is
        left, and not reserved if there is none. The block gets whether it is reserved.
        """
        with self._changed:
            self._is_reserved = gap_within_s is None or self._wait_empty(gap_within_s)
            is_reserved = self._is_reserved
        try:
            yield is_reserved
        finally:
            with self._changed:
                self._is_reserved = False
                self._changed.notify_all()
            self.waker.room_made()

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until no admitted job is left; False after ``timeout_s``, or when closed."""
        with self._changed:
            return self._wait_empty(timeout_s)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run a job in isolation, on the calling thread. The engine must be ``reserved`` and empty."""
        with self._lock:
            ticket = self._new_ticket(TicketState.PREPARING)
        try:
            with self.working_on(ticket):
                yield
        finally:
            self.give_back(ticket)

    @contextmanager
    def working_on(self, ticket: Ticket) -> Iterator[None]:
        """Bind ``ticket`` to the calling thread during the block."""
        self._here.ticket = ticket
        try:
            yield
        finally:
            self._here.ticket = None

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Let the calling thread's job use nothing of the engine during the block, neither a slot nor an estimate."""
        self._move(TicketState.OUTSIDE)
        try:
            yield
        finally:
            self._move(TicketState.PREPARING)

    def entered(self, num_prompt: int, max_tokens: int) -> None:
        """Note that the calling thread's job is in the engine now, and the size of its request in tokens."""
        with self._lock:
            self._needs.append(Need(num_prompt, max_tokens))
            self._usual = Need(
                ceil(fmean(one.num_prompt for one in self._needs)), ceil(fmean(one.max_tokens for one in self._needs))
            )
        self._move(TicketState.IN_ENGINE)

    def left(self) -> None:
        """Note that the calling thread's job has left the engine."""
        self._move(TicketState.FINISHING)

    def give_back(self, ticket: Ticket) -> None:
        """Note that the thread of a taken message is free."""
        with self._changed:
            self._count[ticket.state] -= 1
            self._changed.notify_all()
        self.waker.room_made()

    @property
    def is_closed(self) -> bool:
        """True once no more jobs are taken."""
        return self._closed

    def close(self) -> None:
        """Take no more jobs."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _move(self, state: TicketState) -> None:
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is not None:
            with self._lock:
                self._put(ticket, state)
        self.waker.room_made()

    def _put(self, ticket: Ticket, state: TicketState) -> None:
        self._count[ticket.state] -= 1
        self._count[state] += 1
        ticket.state = state

    def _new_ticket(self, state: TicketState) -> Ticket:
        self._count[state] += 1
        return Ticket(state)

    def _wait_empty(self, timeout_s: float) -> bool:
        self._changed.wait_for(lambda: self._closed or self._is_empty(), timeout_s)
        return self._is_empty() and not self._closed

    def _is_empty(self) -> bool:
        return sum(self._count.values()) == self._count[TicketState.BLOCKED]

    def _need_of_one_more(self, max_slots: int) -> Need | None:
        """Return the need of one more job with those in preparation; None if no job may be taken anyway."""
        with self._lock:
            preparing, in_engine = self._count[TicketState.PREPARING], self._count[TicketState.IN_ENGINE]
            if (
                self._closed
                or self._is_reserved
                or sum(self._count.values()) >= self._max_jobs
                or preparing + in_engine >= max_slots
            ):
                return None
            if self._usual is None:
                # No need is known before the first job: one job at a time.
                return None if preparing else Need(1, 1)
            return Need(self._usual.num_prompt, self._usual.max_tokens, count=preparing + 1)


def _nothing() -> None:
    """There is no loop yet."""

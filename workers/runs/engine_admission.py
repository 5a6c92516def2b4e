"""Takes a message from Redis only while the engine has room for it; the rest stays where any worker can take it.

The room is the engine's credit (slots, and KV blocks that it does not expect to need for those inside) minus what was
taken but has not reached the engine yet. How long a job's prompt is and how much it may generate is not known before
its row is claimed, so the means of the last jobs stand for it, and until the first one has been seen jobs are taken one
at a time.

A job that may be what killed its worker must run alone: ``alone`` keeps the door shut until nothing else is here, and
while it runs. A message that kombu had asked for before the door was shut waits there.

Celery's side is a bootstep that wraps ``channel.qos.can_consume``, which kombu asks before each BRPOP. Celery's own
``worker_disable_prefetch`` uses the same hook.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from math import ceil
from statistics import fmean
from typing import Any, Protocol

from celery import bootsteps
from celery.worker.consumer.tasks import Tasks


class Engine(Protocol):
    """What admission asks of the engine."""

    def can_admit(self, num_prompt: int, max_tokens: int, *, count: int) -> bool:
        """True if ``count`` requests of ``num_prompt`` tokens and up to ``max_tokens`` more would find room now."""
        ...


@dataclass(frozen=True, slots=True)
class Need:
    """``count`` jobs, each with ``num_prompt`` tokens and up to ``max_tokens`` more."""

    num_prompt: int
    max_tokens: int
    count: int = 1


class Place(Enum):
    """Where a taken message is."""

    AT_THE_DOOR = auto()  # not claimed: somebody has the engine to himself
    ON_THE_WAY = auto()  # claimed, tokenised: counted here, by the mean need
    INSIDE = auto()  # in the engine, which counts its blocks
    LEAVING = auto()  # its outcome is being written: it holds a thread, and nothing of the engine


class Ticket:
    """One taken message, from the moment Celery has it until its thread is free."""

    def __init__(self, place: Place) -> None:
        self.place = place


class Admission:
    """Counts what was taken and decides whether another job may be.

        take ──▶ on the way ──entered──▶ inside ──left──▶ leaving ──▶ give_back
          └──▶ at the door ─▲  while ``alone`` has the engine

    Invariant: every ticket is counted in exactly one place until it is given back, from wherever it is.
    """

    def __init__(self, engine: Engine, *, max_jobs: int, max_slots: int, num_spare: int = 0) -> None:
        self._engine = engine
        self._max_jobs = max_jobs
        self._max_slots = max_slots
        # Places for jobs that go ahead while all others are taken.
        self._num_spare = num_spare
        self.full = threading.Event()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._here = threading.local()
        self._count = dict.fromkeys(Place, 0)
        self._needs: deque[Need] = deque(maxlen=64)
        self._closed = False
        self._is_reserved = False
        self._refused = False
        self.num_messages = 0
        self.wake: Callable[[], None] = lambda: None

    @property
    def in_flight(self) -> int:
        """Messages taken whose thread is not free yet."""
        with self._lock:
            return sum(self._count.values())

    def has_credit(self) -> bool:
        """True if one more message may be taken; if not, ``wake`` is called when it is worth asking again."""
        # Noted before looking, so that room made while we look is not missed.
        self._refused = True
        if not self.has_room():
            self.full.set()
            return False
        self._refused = False
        return True

    def has_room(self) -> bool:
        """True if one more job may be taken; nobody is woken if not."""
        return self._has_room(self._max_slots)

    def has_spare_room(self) -> bool:
        """True if one more job may be taken that goes ahead of the others."""
        return self._has_room(self._max_slots + self._num_spare)

    def pause(self, timeout_s: float) -> None:
        """Wait until something has changed, or so long."""
        with self._changed:
            self._changed.wait(timeout_s)

    def _has_room(self, max_slots: int) -> bool:
        need = self._need_of_one_more(max_slots)
        return need is not None and self._engine.can_admit(need.num_prompt, need.max_tokens, count=need.count)

    def made_room(self) -> None:
        """Wake whoever was refused; the engine's ``on_credit``."""
        if self._refused:
            self._refused = False
            self.wake()

    def take(self) -> Ticket:
        """Note that a message was taken."""
        with self._lock:
            self.num_messages += 1
            return self._new_ticket(Place.AT_THE_DOOR if self._is_reserved else Place.ON_THE_WAY)

    def take_without_message(self) -> Ticket | None:
        """Take a place for a job that comes by another way than a message; None if there is no room for it."""
        if not self.has_room():
            return None
        with self._lock:
            return None if self._is_reserved or self._closed else self._new_ticket(Place.ON_THE_WAY)

    def wait_for_turn(self) -> bool:
        """Wait while another job has the engine to itself; False if the worker stops before that one has ended."""
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is None or ticket.place is not Place.AT_THE_DOOR:
            return True
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._is_reserved)
            if self._is_reserved:
                return False
            self._put(ticket, Place.ON_THE_WAY)
            return True

    @contextmanager
    def reserved(self, *, gap_within_s: float | None = None) -> Iterator[bool]:
        """Let nobody in for the block, except the caller by ``alone``.

        ``gap_within_s``: only if for a moment within that time nobody is past the door, and from that moment on; the
        block is told whether it is so.
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
            self.made_room()

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until nobody is past the door; False if somebody still is after ``timeout_s``, or when closed."""
        with self._changed:
            return self._wait_empty(timeout_s)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the only place, on the calling thread; the door must be ``reserved`` and nobody past it."""
        with self._lock:
            ticket = self._new_ticket(Place.ON_THE_WAY)
        try:
            with self.working_on(ticket):
                yield
        finally:
            self.give_back(ticket)

    @contextmanager
    def working_on(self, ticket: Ticket) -> Iterator[None]:
        """Tie the calling thread to ``ticket``."""
        self._here.ticket = ticket
        try:
            yield
        finally:
            self._here.ticket = None

    def entered(self, num_prompt: int, max_tokens: int) -> None:
        """Note that the calling thread's job is in the engine now, with so many tokens and up to so many more."""
        with self._lock:
            self._needs.append(Need(num_prompt, max_tokens))
        self._move(Place.INSIDE)

    def left(self) -> None:
        """Note that the engine has let the calling thread's job go."""
        self._move(Place.LEAVING)

    def give_back(self, ticket: Ticket) -> None:
        """Note that the thread of a taken message is free."""
        with self._changed:
            self._count[ticket.place] -= 1
            self._changed.notify_all()
        self.made_room()

    @property
    def is_closed(self) -> bool:
        """True once nothing is taken any more."""
        return self._closed

    def close(self) -> None:
        """Take nothing any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _move(self, place: Place) -> None:
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is not None:
            with self._lock:
                self._put(ticket, place)
        self.made_room()

    def _put(self, ticket: Ticket, place: Place) -> None:
        self._count[ticket.place] -= 1
        self._count[place] += 1
        ticket.place = place

    def _new_ticket(self, place: Place) -> Ticket:
        self._count[place] += 1
        return Ticket(place)

    def _wait_empty(self, timeout_s: float) -> bool:
        self._changed.wait_for(lambda: self._closed or self._is_empty(), timeout_s)
        return self._is_empty() and not self._closed

    def _is_empty(self) -> bool:
        return sum(self._count.values()) == self._count[Place.AT_THE_DOOR]

    def _need_of_one_more(self, max_slots: int) -> Need | None:
        """What must find room for one more job beside those on the way; None if that is not the question."""
        with self._lock:
            on_the_way, inside = self._count[Place.ON_THE_WAY], self._count[Place.INSIDE]
            if (
                self._closed
                or self._is_reserved
                or sum(self._count.values()) >= self._max_jobs
                or on_the_way + inside >= max_slots
            ):
                return None
            if not self._needs:
                # Nothing is known before the first job: one at a time.
                return None if on_the_way else Need(1, 1)
            num_prompt = fmean(need.num_prompt for need in self._needs)
            max_tokens = fmean(need.max_tokens for need in self._needs)
            return Need(ceil(num_prompt), ceil(max_tokens), count=on_the_way + 1)


def admission_step(admission: Admission) -> type[bootsteps.StartStopStep]:
    """Return the consumer bootstep that puts ``admission`` between Celery and the queue."""

    class AdmissionStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no annotations
        """Installed anew after every reconnect, which brings a new channel."""

        requires = (Tasks,)

        def start(self, c: Any) -> None:
            """Wrap the channel's quality of service and let credit wake the event loop."""
            gate(c.task_consumer.channel.qos, admission)
            admission.wake = lambda: wake(c.hub)

    return AdmissionStep


def gate(qos: Any, admission: Admission) -> None:
    """Make ``qos.can_consume`` ask ``admission`` as well."""
    original = qos.can_consume

    def can_consume() -> bool:
        return admission.has_credit() and bool(original())

    qos.can_consume = can_consume


def wake(hub: Any) -> None:
    """End the event loop's wait from another thread, so that it asks for credit again."""
    hub.call_soon(_nothing)


def _nothing() -> None:
    """Run by the hub; that it woke up is the point."""

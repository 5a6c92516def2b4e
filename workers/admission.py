"""Takes a message from Redis only while the engine has room for it; the rest stays where any worker can take it.

The room is the engine's credit (free KV blocks and slots) minus what was taken but has not reached the engine yet.
What a job needs is not known before its row is claimed, so the mean of the last jobs stands for it, and until the
first one has been seen jobs are taken one at a time.

Celery's side is a bootstep that wraps ``channel.qos.can_consume``, which kombu asks before each BRPOP. Celery's own
``worker_disable_prefetch`` uses the same hook.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from celery import bootsteps
from celery.worker.consumer.tasks import Tasks


class Engine(Protocol):
    """What admission asks of the engine."""

    def can_admit(self, tokens: int) -> bool:
        """True if a request of ``tokens`` tokens, prompt and output together, would find room now."""
        ...


class Ticket:
    """One taken message, from the moment Celery has it until its thread is free."""

    def __init__(self) -> None:
        self.entered = False


class Admission:
    """Counts what was taken and decides whether another job may be.

    take ── on its way (claim, tokenise) ── entered ──▶ in the engine ──▶ outcome being written ── give_back
            counted here, by the mean need              counted by the engine
    """

    def __init__(self, engine: Engine, *, max_jobs: int) -> None:
        self._engine = engine
        self._max_jobs = max_jobs
        self._lock = threading.Lock()
        self._here = threading.local()
        self._on_the_way = 0
        self._in_flight = 0
        self._needs: deque[int] = deque(maxlen=64)
        self._closed = False
        self.on_credit: Callable[[], None] = lambda: None

    @property
    def in_flight(self) -> int:
        """Messages taken whose thread is not free yet."""
        return self._in_flight

    def has_credit(self) -> bool:
        """True if one more message may be taken."""
        with self._lock:
            if self._closed or self._in_flight >= self._max_jobs:
                return False
            on_the_way, needs = self._on_the_way, list(self._needs)
        if not needs:
            return on_the_way == 0 and self._engine.can_admit(1)
        return self._engine.can_admit((on_the_way + 1) * -(-sum(needs) // len(needs)))

    def take(self) -> Ticket:
        """Note that a message was taken."""
        with self._lock:
            self._in_flight += 1
            self._on_the_way += 1
        return Ticket()

    @contextmanager
    def working_on(self, ticket: Ticket) -> Iterator[None]:
        """Tie the calling thread to ``ticket``."""
        self._here.ticket = ticket
        try:
            yield
        finally:
            self._here.ticket = None

    def entered(self, tokens: int) -> None:
        """Note that the calling thread's job is in the engine now and needs ``tokens`` tokens there."""
        ticket = getattr(self._here, "ticket", None)
        with self._lock:
            self._needs.append(tokens)
            if ticket is not None and not ticket.entered:
                ticket.entered = True
                self._on_the_way -= 1
        self.on_credit()

    def give_back(self, ticket: Ticket) -> None:
        """Note that the thread of a taken message is free."""
        with self._lock:
            self._in_flight -= 1
            self._on_the_way -= 0 if ticket.entered else 1
        self.on_credit()

    def close(self) -> None:
        """Take nothing any more."""
        with self._lock:
            self._closed = True


def admission_step(admission: Admission) -> type[bootsteps.StartStopStep]:
    """Return the consumer bootstep that puts ``admission`` between Celery and the queue."""

    class AdmissionStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no annotations
        """Installed anew after every reconnect, which brings a new channel."""

        requires = (Tasks,)

        def start(self, c: Any) -> None:
            """Wrap the channel's quality of service and let credit wake the event loop."""
            gate(c.task_consumer.channel.qos, admission)
            admission.on_credit = lambda: wake(c.hub)

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

"""Turns of tenants at a few places: how many pieces of work run at the same time, and whose is next.

A place that becomes free goes to the tenant with the fewest pieces at work, and among equals to the one that had its
last turn before the others. No tenant has all places, so the first piece of another one finds a place at once.
"""

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

T = TypeVar("T")

_tenant_at_work: ContextVar[str] = ContextVar("tenant_at_work", default="")


class SandboxBusy(Exception):
    """Other pieces of work had all places for too long. The work was not begun."""


@contextmanager
def on_behalf_of(tenant_id: str) -> Iterator[None]:
    """Say whose work this thread or task does in the block, for ``tenant_at_work``."""
    before = _tenant_at_work.set(tenant_id)
    try:
        yield
    finally:
        _tenant_at_work.reset(before)


def tenant_at_work() -> str:
    """Return the tenant whose work this thread or task does; an empty text where nothing has said it."""
    return _tenant_at_work.get()


class Turns:
    """At most ``num_places`` pieces at the same time. Used by threads, coroutines or both at once.

    ``most_of_one``: the most pieces of one tenant, by default all places but one.
    """

    def __init__(self, num_places: int, *, most_of_one: int | None = None) -> None:
        self._num_places = num_places
        self._most_of_one = most_of_one or max(1, num_places - 1)
        self._threads = CapacityLimiter(num_places)
        self._lock = threading.Lock()
        self.at_work: Counter[str] = Counter()
        # A ticket is done when it has its place. The tenant whose turn was the longest time ago is first.
        self.waiting: dict[str, deque[Future[None]]] = {}

    @contextmanager
    def turn(self, tenant_id: str, *, wait_s: float | None = None) -> Iterator[None]:
        """Have a place during the block. Raises SandboxBusy if there is none within ``wait_s``. Blocks."""
        ticket = self._ask(tenant_id)
        try:
            try:
                ticket.result(wait_s)
            except TimeoutError:
                raise SandboxBusy(f"all {self._num_places} places were taken for {wait_s} s") from None
            with on_behalf_of(tenant_id):
                yield
        finally:
            self._give_back(tenant_id, ticket)

    async def run(self, tenant_id: str, call: Callable[[], T]) -> T:
        """Wait for a place, and run the call in a thread. Returns or raises its outcome."""
        ticket = self._ask(tenant_id)
        try:
            # Shielded: a ticket whose task is cancelled is given back below, whether it has its place or not.
            await asyncio.shield(asyncio.wrap_future(ticket))
            with on_behalf_of(tenant_id):
                return await run_sync(call, limiter=self._threads)
        finally:
            self._give_back(tenant_id, ticket)

    def _ask(self, tenant_id: str) -> Future[None]:
        ticket: Future[None] = Future()
        with self._lock:
            self.waiting.setdefault(tenant_id, deque()).append(ticket)
            self._grant()
        return ticket

    def _give_back(self, tenant_id: str, ticket: Future[None]) -> None:
        with self._lock:
            if ticket.done():
                self.at_work[tenant_id] -= 1
                self.at_work += Counter()  # forgets tenants without pieces
                if tenant_id in self.waiting and not self.at_work[tenant_id]:
                    self.waiting[tenant_id] = self.waiting.pop(tenant_id)  # behind those that came meanwhile
            else:
                self.waiting[tenant_id].remove(ticket)
                if not self.waiting[tenant_id]:
                    del self.waiting[tenant_id]
            self._grant()

    def _grant(self) -> None:
        """Give the free places to those whose turn it is."""
        while self.at_work.total() < self._num_places:
            able = [tenant_id for tenant_id in self.waiting if self.at_work[tenant_id] < self._most_of_one]
            if not able:
                return
            chosen = min(able, key=self.at_work.__getitem__)
            tickets = self.waiting.pop(chosen)
            self.at_work[chosen] += 1
            tickets.popleft().set_result(None)
            if tickets:
                self.waiting[chosen] = tickets  # behind the other tenants

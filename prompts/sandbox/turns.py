"""Turns of tenants at a few places: how many pieces of work run at the same time, and whose is next.

A place that becomes free goes to the tenant with the fewest pieces at work, and among equals to the one that had its
last turn before the others. No tenant has all places, so the first piece of another one finds a place at once.
"""

import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager


class SandboxBusy(Exception):
    """Other pieces of work had all places for too long. The work was not begun."""


class Turns:
    """At most ``num_places`` pieces at the same time. Thread-safe."""

    def __init__(self, num_places: int, *, wait_s: float) -> None:
        self._num_places = num_places
        self._wait_s = wait_s
        self._at_work: Counter[str] = Counter()
        # The tenant whose turn was the longest time ago is first.
        self._waiting: dict[str, deque[object]] = {}
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, tenant_id: str) -> Iterator[None]:
        """Have a place during the block. Raises SandboxBusy if there is none within ``wait_s``."""
        self._enter(tenant_id)
        try:
            yield
        finally:
            with self._changed:
                self._at_work[tenant_id] -= 1
                self._changed.notify_all()

    def _enter(self, tenant_id: str) -> None:
        ticket = object()
        with self._changed:
            self._waiting.setdefault(tenant_id, deque()).append(ticket)
            has_turn = self._changed.wait_for(lambda: self._next() is ticket, self._wait_s)
            left = self._waiting[tenant_id]
            left.remove(ticket)
            if has_turn:
                self._at_work[tenant_id] += 1
                self._waiting[tenant_id] = self._waiting.pop(tenant_id)  # behind the other tenants
            if not left:
                del self._waiting[tenant_id]
            self._changed.notify_all()
        if not has_turn:
            raise SandboxBusy(f"all {self._num_places} places were taken for {self._wait_s} s")

    def _next(self) -> object | None:
        """Return the ticket whose turn it is; None if there is no place."""
        if self._at_work.total() >= self._num_places:
            return None
        most = max(1, self._num_places - 1)
        able = [tenant_id for tenant_id in self._waiting if self._at_work[tenant_id] < most]
        chosen = min(able, key=self._at_work.__getitem__, default=None)
        return None if chosen is None else self._waiting[chosen][0]

"""Threads for calls that may take long: a policy on a long text, a grammar that must be compiled, a list query.

A tenant has at most one thread at a time, and its further calls wait. So a slow call of one tenant does not delay
another tenant, and the threads of all other requests stay free.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

T = TypeVar("T")

NUM_THREADS = 8
"""The most tenants that are served at the same time."""


class TenantThreads:
    """Runs calls in threads, the calls of one tenant one after the other."""

    def __init__(self, num_threads: int = NUM_THREADS) -> None:
        self._threads = CapacityLimiter(num_threads)
        self._queues: dict[str, _TenantQueue] = {}

    async def run(self, tenant_id: str, call: Callable[[], T]) -> T:
        """Wait for the tenant's earlier calls and for a thread, and run the call. Returns or raises its outcome."""
        queue = self._queues.setdefault(tenant_id, _TenantQueue())
        queue.num_calls += 1
        try:
            async with queue.lock:
                return await run_sync(call, limiter=self._threads)
        finally:
            queue.num_calls -= 1
            if not queue.num_calls:
                del self._queues[tenant_id]


class _TenantQueue:
    """A tenant's lock, kept while the tenant has calls."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.num_calls = 0

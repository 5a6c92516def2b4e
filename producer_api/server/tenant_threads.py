"""Threads for what may take long for one tenant: its policy over a long text, a grammar that was not met before.

No tenant has more than one of them at a time, and its further calls wait for their turn; so what takes a second for one
tenant takes nothing from another, and the threads that all other requests share stay free.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

T = TypeVar("T")

NUM_THREADS = 8
"""Tenants that are served at once."""


class TenantThreads:
    """Runs calls in threads of its own, those of one tenant one after the other."""

    def __init__(self, num_threads: int = NUM_THREADS) -> None:
        self._threads = CapacityLimiter(num_threads)
        self._turns: dict[str, _TenantQueue] = {}

    async def run(self, tenant_id: str, call: Callable[[], T]) -> T:
        """Wait for the tenant's turn and for a thread, and make the call there. Returns and raises what it does."""
        turn = self._turns.setdefault(tenant_id, _TenantQueue())
        turn.num_inside += 1
        try:
            async with turn.lock:
                return await run_sync(call, limiter=self._threads)
        finally:
            turn.num_inside -= 1
            if not turn.num_inside:
                del self._turns[tenant_id]


class _TenantQueue:
    """A tenant's lock, kept while it is waited for."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.num_inside = 0

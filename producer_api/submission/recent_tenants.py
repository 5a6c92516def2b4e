"""Which tenants have sent nothing for a moment: their next request waits for no others."""

import math
import time
from collections.abc import Callable

IDLE_S = 0.1
"""A tenant that has sent nothing for this long starts the next batch, and is not delayed by a tenant with many jobs."""

_MAX_TENANTS = 10_000


class RecentTenants:
    """When each tenant sent its last request, so that a tenant with few requests does not wait for a batch to fill.

    Used on the event loop alone.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def was_idle(self, tenant_id: str) -> bool:
        """Note a request; return True if the tenant's last one is at least ``IDLE_S`` ago."""
        now = self._clock()
        last = self._last.pop(tenant_id, -math.inf)
        if len(self._last) >= _MAX_TENANTS:
            self._last.clear()
        self._last[tenant_id] = now
        return now - last >= IDLE_S

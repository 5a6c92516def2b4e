"""Which tenants have sent a model nothing for a moment: their next request to it waits for no others.

By model, because the first token of a chat shall not wait for the batches that the same tenant fills with rows of a
table or texts to embed.
"""

import math
import time
from collections.abc import Callable

IDLE_S = 0.1
"""A tenant that has sent a model nothing for this long starts the next batch, and is not delayed by other requests."""

_MAX_KEPT = 10_000


class RecentTenants:
    """When each tenant sent its last request to each model, so that a rare request does not wait for a batch to fill.

    Used on the event loop alone.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[tuple[str, str], float] = {}

    def was_idle(self, tenant_id: str, model: str) -> bool:
        """Note a request; return True if the tenant's last one to the model is at least ``IDLE_S`` ago."""
        now = self._clock()
        last = self._last.pop((tenant_id, model), -math.inf)
        if len(self._last) >= _MAX_KEPT:
            self._last.clear()
        self._last[tenant_id, model] = now
        return now - last >= IDLE_S

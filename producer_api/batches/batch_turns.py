"""Whose batch the keeper looks at next: tenants take turns, and a tenant's batches take turns among themselves.

    round 1:  A1  B1  C1        one batch of each tenant, the one that is due for longest
    round 2:  A2      C1        B has no other that is due

So a tenant's batch waits for one batch of each other tenant, however many those have. Pure; times are the clock's.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from store.batches.batch_steps import LiveBatch

WAITING_S = 0.1
LONGEST_WAIT_S = 1.0
"""A batch that only waits is looked at again after the first, then after twice as long each time, up to the second."""

FAILED_S = 1.0
LONGEST_FAILED_S = 60.0
"""The same for one whose step has failed."""


@dataclass(slots=True)
class _Place:
    """When a batch is due, and how often in a row it has waited or failed."""

    due_at: float = -math.inf
    num_waits: int = 0
    num_failures: int = 0


class Turns:
    """The order. A batch is due at once when it is new."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By tenant, then by batch.
        self._places: dict[str, dict[str, _Place]] = {}

    def keep(self, live: Iterable[LiveBatch]) -> None:
        """Take in the batches that live; forget the others."""
        places: dict[str, dict[str, _Place]] = {}
        for batch in live:
            known = self._places.get(batch.tenant_id, {}).get(batch.id)
            places.setdefault(batch.tenant_id, {})[batch.id] = known or _Place()
        self._places = places

    @property
    def num_tenants(self) -> int:
        """How many tenants have live batches."""
        return len(self._places)

    def num_live(self, tenant_id: str) -> int:
        """Return how many live batches a tenant has."""
        return len(self._places.get(tenant_id, ()))

    def round(self) -> list[LiveBatch]:
        """Return of each tenant the batch that is due for longest, if one is due."""
        now = self._clock()
        found = []
        for tenant_id, places in self._places.items():
            batch_id = min(places, key=lambda each: places[each].due_at)
            if places[batch_id].due_at <= now:
                found.append(LiveBatch(batch_id, tenant_id))
        return found

    def worked(self, batch: LiveBatch) -> None:
        """Note that a piece of work was done: there may be more, after the tenant's other batches."""
        self._put(batch, 0.0)

    def waits(self, batch: LiveBatch) -> None:
        """Note that nothing was due."""
        place = self._places[batch.tenant_id][batch.id]
        self._put(batch, _doubled(WAITING_S, place.num_waits, LONGEST_WAIT_S), num_waits=place.num_waits + 1)

    def failed(self, batch: LiveBatch) -> None:
        """Note that a step failed."""
        place = self._places[batch.tenant_id][batch.id]
        delay_s = _doubled(FAILED_S, place.num_failures, LONGEST_FAILED_S)
        self._put(batch, delay_s, num_failures=place.num_failures + 1)

    def _put(self, batch: LiveBatch, delay_s: float, *, num_waits: int = 0, num_failures: int = 0) -> None:
        place = _Place(self._clock() + delay_s, num_waits, num_failures)
        self._places[batch.tenant_id][batch.id] = place


def _doubled(first_s: float, num_before: int, longest_s: float) -> float:
    return float(min(longest_s, first_s * 2 ** min(num_before, 16)))

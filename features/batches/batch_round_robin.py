"""Order in which the keeper visits batches: round robin over tenants, then over each tenant's batches.

    round 1:  A1  B1  C1        for each tenant the batch that has been due for the longest time
    round 2:  A2      C1        tenant B has no other due batch

So a batch waits for at most one batch of each other tenant, independent of how many they have. Pure: all times come
from ``clock``.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from headrace.features.batches.batch_steps import LiveBatch

WAITING_S = 0.1
LONGEST_WAIT_S = 1.0
"""Polling of a batch with nothing to do: exponential backoff from ``WAITING_S`` to ``LONGEST_WAIT_S``."""

FAILED_S = 1.0
LONGEST_FAILED_S = 60.0
"""Backoff after a failed step."""


@dataclass(slots=True)
class _NextTurn:
    """When a batch is due, and its number of consecutive waits and failures."""

    due_at: float = -math.inf
    num_waits: int = 0
    num_failures: int = 0


class BatchRoundRobin:
    """The round robin over live batches. A new batch is due immediately."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By tenant id, then by batch id.
        self._next_turns: dict[str, dict[str, _NextTurn]] = {}

    def keep(self, live: Iterable[LiveBatch]) -> None:
        """Replace the set of live batches; known ones keep their state."""
        turns: dict[str, dict[str, _NextTurn]] = {}
        for batch in live:
            known = self._next_turns.get(batch.tenant_id, {}).get(batch.id)
            turns.setdefault(batch.tenant_id, {})[batch.id] = known or _NextTurn()
        self._next_turns = turns

    @property
    def num_tenants(self) -> int:
        """Number of tenants with live batches."""
        return len(self._next_turns)

    def num_live(self, tenant_id: str) -> int:
        """Return the number of live batches of a tenant."""
        return len(self._next_turns.get(tenant_id, ()))

    def round(self) -> list[LiveBatch]:
        """Return for each tenant the batch that has been due for the longest time, if any is due."""
        now = self._clock()
        found = []
        for tenant_id, turns in self._next_turns.items():
            batch_id = min(turns, key=lambda each: turns[each].due_at)
            if turns[batch_id].due_at <= now:
                found.append(LiveBatch(batch_id, tenant_id))
        return found

    def worked(self, batch: LiveBatch) -> None:
        """A piece of work was done: the batch is due again, after the tenant's other batches."""
        self._put(batch, 0.0)

    def waits(self, batch: LiveBatch) -> None:
        """There was nothing to do: back off."""
        turn = self._next_turns[batch.tenant_id][batch.id]
        self._put(batch, _doubled(WAITING_S, turn.num_waits, LONGEST_WAIT_S), num_waits=turn.num_waits + 1)

    def failed(self, batch: LiveBatch) -> None:
        """A step failed: back off."""
        turn = self._next_turns[batch.tenant_id][batch.id]
        delay_s = _doubled(FAILED_S, turn.num_failures, LONGEST_FAILED_S)
        self._put(batch, delay_s, num_failures=turn.num_failures + 1)

    def _put(self, batch: LiveBatch, delay_s: float, *, num_waits: int = 0, num_failures: int = 0) -> None:
        turn = _NextTurn(self._clock() + delay_s, num_waits, num_failures)
        self._next_turns[batch.tenant_id][batch.id] = turn


def _doubled(first_s: float, num_before: int, longest_s: float) -> float:
    return float(min(longest_s, first_s * 2 ** min(num_before, 16)))

"""Queue statistics: adds up the counters that triggers wrote, and measures the rate at which jobs are started.

The meters are in this process: a dispatcher that takes over measures for a second before it writes a rate; until then
the rates of its predecessor stay. ``store.scheduling.backlog`` reads them.
"""

import time
from collections.abc import Callable

from headrace.store.db.database import Database
from headrace.store.scheduling import queues
from headrace.store.scheduling.service_rate import Interval, RateMeter
from headrace.store.tenants import quotas

RECORD_S = 1.0
"""Least time between two writes of the rates, in seconds."""


class QueueStats:
    """Counts and measures every queue. ``on_interval`` gets what happened to each."""

    def __init__(
        self,
        db: Database,
        *,
        on_interval: Callable[[str, Interval], None] = lambda _queue, _interval: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._on_interval = on_interval
        self._clock = clock
        self._meters: dict[str, RateMeter] = {}
        self._measured: set[str] = set()
        self._due_at = 0.0

    @property
    def has_news(self) -> bool:
        """True if there are rates to write even without changes."""
        return bool(self._measured)

    def turn(self) -> None:
        """Process the changes since the last turn."""
        quotas.fold(self._db)
        for queue, interval in queues.fold(self._db).items():
            self._on_interval(queue, interval)
            meter = self._meters.setdefault(queue, RateMeter(interval.at))
            if meter.observe(interval):
                self._measured.add(queue)
        if self._measured and self._clock() >= self._due_at:
            self._record()

    def _record(self) -> None:
        rates = {queue: rate for queue in self._measured if (rate := self._meters[queue].rate()) is not None}
        queues.record_rates(self._db, rates)
        self._measured.clear()
        self._due_at = self._clock() + RECORD_S

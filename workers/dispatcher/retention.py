"""The retention thread of the dispatcher: deletes content and rows at the end of their retention.

A round takes each kind of data in batches. A full batch may have more to do and is repeated after the others, so a
round lasts as long as the backlog, and no tenant waits for another's. The thread has its own transactions: no other
duty of the dispatcher waits for it. Rounds begin ``ROUND_S`` apart.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import structlog

from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.jobs import sweeps
from headrace.store.retention import retention
from headrace.store.retention.retention import ErasureCounts
from headrace.store.scheduling import queues
from headrace.store.settings import Settings
from headrace.store.tenants import quotas, usage

log = structlog.get_logger(__name__)

ROUND_S = 60.0
ROWS = 500
REST = 0.5
"""Sleep this multiple of the last batch's duration, so that Postgres can serve others."""

Batch = Callable[[], bool]
"""Deletes at most ``ROWS`` rows of a kind, and returns whether there may be more."""


class RetentionThread:
    """The thread. ``forget_streams`` deletes jobs' streams in Redis. ``start`` and ``stop`` may be called once."""

    def __init__(self, db: Database, settings: Settings, forget_streams: Callable[[Iterable[str]], None]) -> None:
        self._db = db
        self._settings = settings
        self._forget_streams = forget_streams
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        """Begin the first round."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End after the current batch; wait for it at most ``timeout_s``."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            next_round_at = time.monotonic() + ROUND_S
            try:
                self.round()
            except Unavailable as error:
                log.warning("dispatcher.nothing_forgotten", error=error.message)
            self._stopping.wait(max(0.0, next_round_at - time.monotonic()))

    def round(self) -> None:
        """Delete all that is due now. Raises Unavailable if Postgres is away at the beginning."""
        batches = deque(self._batches())
        while batches and not self._stopping.is_set():
            batch = batches.popleft()
            began_at = time.monotonic()
            try:
                if batch():
                    batches.append(batch)
            except Unavailable as error:
                # It is retried in the next round and delays no other batch.
                log.warning("dispatcher.forgetting_failed", error=error.message)
            except Exception:
                log.exception("dispatcher.forgetting_failed")
            self._stopping.wait(REST * (time.monotonic() - began_at))

    def _batches(self) -> Iterator[Batch]:
        settings = self._settings
        yield partial(self._forget, partial(retention.sweep_marked, self._db, ROWS))
        for tenant_id, effective in retention.read_all(self._db, retention.defaults(settings)).items():
            yield partial(self._forget, partial(retention.sweep, self._db, tenant_id, effective, ROWS))
            yield partial(self._add_up, tenant_id)
        yield self._purge
        yield self._forget_empty

    def _forget(self, sweep: Callable[[], ErasureCounts]) -> bool:
        swept = sweep()
        counts = swept.counts()
        if any(counts.values()):
            log.info("dispatcher.forgotten", **counts)
            try:
                self._forget_streams(swept.job_ids)
            except Unavailable:
                log.info("dispatcher.streams_left", num_jobs=len(swept.job_ids))  # they expire in Redis soon
        return swept.more

    def _purge(self) -> bool:
        settings = self._settings
        num_rows = sweeps.purge(self._db, settings.record_ttl_s, settings.idempotency_ttl_s, ROWS)
        if num_rows:
            log.info("dispatcher.purged", num_rows=num_rows)
        return num_rows >= ROWS

    def _forget_empty(self) -> bool:
        queues.forget_empty(self._db)
        quotas.delete_zero_totals(self._db)
        return False

    def _add_up(self, tenant_id: str) -> bool:
        return usage.roll_up(self._db, tenant_id, self._settings.record_ttl_s + usage.DETAIL_S, ROWS) >= ROWS

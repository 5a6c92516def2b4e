"""The dispatcher's thread that forgets: what the tenants' retention has let go, and rows that were kept long enough.

A round goes through all that may be due, a bounded piece of each. A piece that comes back full has more to do and goes
again after the others, so a round lasts as long as the backlog and no tenant waits for another's. It has a thread and
transactions of its own: no other duty of the dispatcher waits for it. Rounds begin ``ROUND_S`` apart.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import structlog

from store.db.database import Database
from store.errors import Unavailable
from store.jobs import sweeps
from store.retention import retention
from store.retention.retention import Swept
from store.scheduling import queues
from store.settings import Settings
from store.tenants import quotas, usage

log = structlog.get_logger(__name__)

ROUND_S = 60.0
ROWS = 500
REST = 0.5
"""Between two pieces the thread sleeps for so many times as long as the last one took: Postgres has others to serve."""

Piece = Callable[[], bool]
"""Forgets at most ``ROWS`` rows of a kind, and returns whether there may be more."""


class RetentionThread:
    """The thread. ``forget_streams`` takes jobs' streams out of Redis. ``start`` and ``stop`` may be called once."""

    def __init__(self, db: Database, settings: Settings, forget_streams: Callable[[Iterable[str]], None]) -> None:
        self._db = db
        self._settings = settings
        self._forget_streams = forget_streams
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="forgetting", daemon=True)

    def start(self) -> None:
        """Begin the first round."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End after the piece at hand; wait at most so long for it."""
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
        """Forget all that is due now. Raises Unavailable if Postgres is away at its beginning."""
        pieces = deque(self._pieces())
        while pieces and not self._stopping.is_set():
            piece = pieces.popleft()
            began_at = time.monotonic()
            try:
                if piece():
                    pieces.append(piece)
            except Unavailable as error:
                # It comes again with the next round, and holds up no other meanwhile.
                log.warning("dispatcher.forgetting_failed", error=error.message)
            except Exception:
                log.exception("dispatcher.forgetting_failed")
            self._stopping.wait(REST * (time.monotonic() - began_at))

    def _pieces(self) -> Iterator[Piece]:
        settings = self._settings
        yield partial(self._forget, partial(retention.sweep_unwanted, self._db, ROWS))
        for tenant_id, holds in retention.read_all(self._db, retention.defaults(settings)).items():
            yield partial(self._forget, partial(retention.sweep, self._db, tenant_id, holds, ROWS))
            yield partial(self._add_up, tenant_id)
        yield self._purge
        yield self._forget_empty

    def _forget(self, sweep: Callable[[], Swept]) -> bool:
        swept = sweep()
        counts = swept.counts()
        if any(counts.values()):
            log.info("dispatcher.forgotten", **counts)
            try:
                self._forget_streams(swept.job_ids)
            except Unavailable:
                log.info("dispatcher.streams_left", num_jobs=len(swept.job_ids))  # Redis lets them go soon by itself
        return swept.more

    def _purge(self) -> bool:
        settings = self._settings
        num_rows = sweeps.purge(self._db, settings.record_ttl_s, settings.idempotency_ttl_s, ROWS)
        if num_rows:
            log.info("dispatcher.purged", num_rows=num_rows)
        return num_rows >= ROWS

    def _forget_empty(self) -> bool:
        queues.forget_empty(self._db)
        quotas.forget_empty(self._db)
        return False

    def _add_up(self, tenant_id: str) -> bool:
        return usage.add_up(self._db, tenant_id, self._settings.record_ttl_s + usage.DETAIL_S, ROWS) >= ROWS

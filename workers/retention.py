"""The dispatcher's duty to forget: what the tenants' retention has let go, a small piece at each turn.

A round goes through all tenants. A turn takes as many of them as fit into ``TURN_S``, so the other duties wait for one
piece at most; a tenant with more to forget than one piece comes again after the others. Rounds begin ``ROUND_S`` apart.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import structlog

from store import retention
from store.db import Database
from store.errors import Unavailable
from store.retention import Retention, Swept

log = structlog.get_logger(__name__)

ROUND_S = 60.0
TURN_S = 0.05
ROWS = 100


class Forgetting:
    """Keeps the place in the round. Called by one thread. ``forget_streams`` takes jobs' streams out of Redis."""

    def __init__(self, db: Database, default: Retention, forget_streams: Callable[[Iterable[str]], None]) -> None:
        self._db = db
        self._forget_streams = forget_streams
        self._default = default
        self._pieces: deque[Callable[[], Swept]] = deque()
        self._next_round_at = 0.0

    def turn(self) -> None:
        """Forget a piece, or as many as fit into a turn; nothing if the round is over. Raises Unavailable."""
        began_at = time.monotonic()
        if not self._pieces and began_at >= self._next_round_at:
            self._next_round_at = began_at + ROUND_S
            self._begin()
        while self._pieces and time.monotonic() - began_at < TURN_S:
            # Taken out first: one that fails comes again with the next round, and holds up nobody meanwhile.
            piece = self._pieces.popleft()
            swept = piece()
            if swept.more:
                self._pieces.append(piece)
            self._told(swept)

    def _begin(self) -> None:
        self._pieces.append(partial(retention.sweep_unwanted, self._db, ROWS))
        for tenant_id, holds in retention.read_all(self._db, self._default).items():
            self._pieces.append(partial(retention.sweep, self._db, tenant_id, holds, ROWS))

    def _told(self, swept: Swept) -> None:
        counts = swept.counts()
        if not any(counts.values()):
            return
        log.info("dispatcher.forgotten", **counts)
        try:
            self._forget_streams(swept.job_ids)
        except Unavailable:
            log.info("dispatcher.streams_left", num_jobs=len(swept.job_ids))  # Redis lets them go soon by itself

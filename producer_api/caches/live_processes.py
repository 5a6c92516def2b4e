"""The live processes: the API processes that share the rate limits, the workers of each queue, the model hosts.

A thread sends the heartbeat of this process to Postgres and reads those of the others. Callers use the last reading. If
it has no worker for a queue, Postgres is read again, because a worker may have started since.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.db.presence import BEAT_S, GONE_AFTER_S, Serving
from headrace.store.errors import HeadraceError
from headrace.store.hosts.host_reports import HostOutlook, HostReport, outlook_of, read_hosts
from headrace.store.ids import new_id
from headrace.store.periodic import Periodic

_UNKNOWN = 8
"""The number of API processes until it was read; high, so that their shares of a limit are not too large."""

CONFIRM_S = 0.25
"""The absence of a worker is read again after this time."""


class LiveProcesses(Periodic):
    """The heartbeat of this process and the last reading of the others. ``at_each_beat`` runs after each heartbeat."""

    def __init__(
        self,
        db: Database,
        *,
        at_each_beat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._at_each_beat = at_each_beat
        self._clock = clock
        self._id = new_id("api")
        self._num_alive = _UNKNOWN
        self._serving: Mapping[str, Serving] = {}
        self._hosts: Sequence[HostReport] = ()
        self._read_at = float("-inf")
        self._reading = threading.Lock()
        super().__init__("presence", self._beat, BEAT_S, at_end=self._leave)

    def num_alive(self) -> int:
        """Return the number of API processes, with this one. Without Postgres it is the last known number."""
        return self._num_alive

    def serving(self, queue: str) -> Serving | None:
        """Return the workers of a queue; None if Postgres does not answer.

        Blocks on Postgres only if no worker is known, and then at most once in ``CONFIRM_S``.
        """
        if queue not in self._serving and self._age_s() > CONFIRM_S:
            with self._reading:
                if self._age_s() > CONFIRM_S:
                    self._read()
        if self._age_s() > GONE_AFTER_S:
            return None
        return self._serving.get(queue, Serving())

    def is_unserved(self, queue: str) -> bool:
        """Return True if no worker serves the queue; False if a worker does, or if it is not known."""
        serving = self.serving(queue)
        return serving is not None and not serving.workers

    def outlook(self, queue: str) -> HostOutlook | None:
        """Return what model hosts do about a queue without a worker, as last read; None if no host knows it."""
        return outlook_of(self._hosts, queue)

    def _age_s(self) -> float:
        return self._clock() - self._read_at

    def _read(self) -> None:
        read_at = self._clock()
        try:
            self._serving = presence.read_serving(self._db)
            self._hosts = read_hosts(self._db)
        except HeadraceError:
            return  # the last reading is used until it is too old
        self._read_at = read_at

    def _beat(self) -> None:
        self._num_alive = presence.beat(self._db, self._id)
        self._read()
        self._at_each_beat()

    def _leave(self) -> None:
        presence.leave(self._db, self._id)

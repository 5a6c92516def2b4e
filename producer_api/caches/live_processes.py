"""Which processes live, as this one last heard: the API processes that share the limits, and the workers by queue.

A thread says now and then that this process lives and reads the others. What it read is used without asking Postgres,
except that a queue without a worker is looked for once more, since a worker may have started just now.
"""

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from store.db import presence
from store.db.database import Database
from store.db.presence import BEAT_S, GONE_AFTER_S, Serving
from store.errors import HeadraceError
from store.ids import new_id

_log = structlog.get_logger("producer_api")

_UNKNOWN = 8
"""API processes where nobody has counted yet; many, so that nothing is let in twice."""

CONFIRM_S = 0.25
"""An absence is believed for so long before Postgres is asked again."""


class LiveProcesses:
    """One process's part in the count. ``db`` reads and writes nobody's tables. ``at_each_beat`` is done as well."""

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
        self._read_at = float("-inf")
        self._reading = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def num_alive(self) -> int:
        """Return how many API processes there are, with this one. Without Postgres it is what it was."""
        return self._num_alive

    def serving(self, queue: str) -> Serving | None:
        """Return the workers of a queue; None if that is not known because Postgres does not answer.

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
        """Return True if no worker serves the queue; False, too, where that is not known."""
        serving = self.serving(queue)
        return serving is not None and not serving.workers

    def start(self) -> None:
        """Begin to say so."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        try:
            presence.leave(self._db, self._id)
        except HeadraceError:
            return  # the others find out by themselves

    def _age_s(self) -> float:
        return self._clock() - self._read_at

    def _read(self) -> None:
        read_at = self._clock()
        try:
            self._serving = presence.read_serving(self._db)
        except HeadraceError:
            return  # what was read last grows old, and is then not believed
        self._read_at = read_at

    def _run(self) -> None:
        while True:
            try:
                self._num_alive = presence.beat(self._db, self._id)
                self._read()
                self._at_each_beat()
            except HeadraceError:
                _log.debug("presence_not_told")
            except Exception:  # noqa: BLE001 - it must not end the thread that others are counted by
                _log.exception("presence_not_told")
            if self._stopping.wait(BEAT_S):
                return

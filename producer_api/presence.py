"""How many API processes share the limits, as this one last heard: a thread that says now and then that it lives."""

import threading

import structlog

from store import presence
from store.db import Database
from store.errors import HeadraceError
from store.ids import new_id

_log = structlog.get_logger("producer_api")

BEAT_S = 2.0
_UNKNOWN = 8
"""Where nobody has counted yet; many, so that nothing is let in twice."""


class Presence:
    """One process's part in the count."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._id = new_id("api")
        self._num_alive = _UNKNOWN
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def num_alive(self) -> int:
        """Return how many processes there are, with this one. Without Postgres it is what it was."""
        return self._num_alive

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

    def _run(self) -> None:
        while True:
            try:
                self._num_alive = presence.beat(self._db, self._id)
            except HeadraceError:
                _log.debug("presence_not_told")
            except Exception:  # noqa: BLE001 - it must not end the thread that others are counted by
                _log.exception("presence_not_told")
            if self._stopping.wait(BEAT_S):
                return

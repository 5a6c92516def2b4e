"""Says that this worker lives, which queue it serves and how long a request it can hold, from a thread of its own."""

import threading
from collections.abc import Callable

import structlog

from store.db import presence
from store.db.database import Database
from store.db.presence import BEAT_S
from store.errors import HeadraceError
from store.ids import new_id

log = structlog.get_logger(__name__)


class PresenceReporter:
    """One worker's row. ``is_taking``: False once it is stopping, from when on it serves nobody."""

    def __init__(self, db: Database, queue: str, capacity: int | None, *, is_taking: Callable[[], bool]) -> None:
        self._db = db
        self._id = new_id("worker")
        self._queue = queue
        self._capacity = capacity
        self._is_taking = is_taking
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Say so, and go on saying it: once this returns, the worker counts."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Say that it ends, and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._stopping.wait(BEAT_S) and self._is_taking():
            self._beat()
        self._tell(lambda: presence.leave_worker(self._db, self._id))

    def _beat(self) -> None:
        self._tell(lambda: presence.beat_worker(self._db, self._id, self._queue, self._capacity))

    def _tell(self, say: Callable[[], None]) -> None:
        try:
            say()
        except HeadraceError as error:
            log.debug("presence_not_told", reason=error.message)
        except Exception:  # it must not end the thread: without it the worker would count as gone
            log.exception("presence_not_told")

"""Reports from its own thread that this worker is alive, its queue, and the longest request that it can run."""

import threading
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.db.presence import BEAT_S
from headrace.store.errors import HeadraceError
from headrace.store.ids import new_id

log = structlog.get_logger(__name__)


class PresenceReporter:
    """Keeps one worker's row up to date.

    ``is_taking`` returns False once the worker is stopping: then the row goes. It goes for a while, too, while
    ``is_able`` returns False. ``capacity``: tokens of the longest request, None if that is the context window.
    ``adapters`` returns the queues that the worker serves beside ``queue``; each has a row of its own. ``slots``: jobs
    that run together, of all these queues.
    """

    def __init__(
        self,
        db: Database,
        queue: str,
        capacity: Callable[[], int | None],
        *,
        is_taking: Callable[[], bool],
        is_able: Callable[[], bool] = lambda: True,
        adapters: Callable[[], Sequence[str]] = lambda: (),
        slots: int | None = None,
    ) -> None:
        self._db = db
        self._ids = {queue: new_id("worker")}
        self._queue = queue
        self._adapters = adapters
        self._slots = slots
        self._capacity = capacity
        self._is_taking = is_taking
        self._is_able = is_able
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Report once, then periodically. When this returns, the worker is known if it is able to take jobs."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Remove the row, and end the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._stopping.wait(BEAT_S) and self._is_taking():
            self._beat()
        self._leave(list(self._ids))

    def _beat(self) -> None:
        served = (self._queue, *self._adapters()) if self._is_able() else ()
        self._leave([queue for queue in self._ids if queue not in served])
        for queue in served:
            row = self._ids.setdefault(queue, new_id("worker"))
            self._try(partial(self._report, row, queue))

    def _report(self, row: str, queue: str) -> None:
        presence.beat_worker(self._db, row, queue, self._capacity(), slots=self._slots)

    def _leave(self, queues: Sequence[str]) -> None:
        for queue in queues:
            self._try(partial(presence.leave_worker, self._db, self._ids[queue]))

    def _try(self, report: Callable[[], None]) -> None:
        try:
            report()
        except HeadraceError as error:
            log.debug("presence_not_told", reason=error.message)
        except Exception:  # the thread must go on: without it the worker would count as gone
            log.exception("presence_not_told")

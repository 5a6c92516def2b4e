"""Reports from its own thread that this worker is alive, its queue, and the longest request that it can run."""

from collections.abc import Callable, Sequence

from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.db.presence import BEAT_S
from headrace.store.ids import new_id
from headrace.store.periodic import Periodic


class PresenceReporter(Periodic):
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
        super().__init__("presence", self._beat, BEAT_S, at_end=self._leave_all)

    def start(self) -> None:
        """Report once, then periodically. When this returns, the worker is known if it is able to take jobs."""
        self.run_once()
        super().start()

    def _beat(self) -> None:
        served = (self._queue, *self._adapters()) if self._is_taking() and self._is_able() else ()
        self._leave([queue for queue in self._ids if queue not in served])
        for queue in served:
            row = self._ids.setdefault(queue, new_id("worker"))
            presence.beat_worker(self._db, row, queue, self._capacity(), slots=self._slots)

    def _leave_all(self) -> None:
        self._leave(list(self._ids))

    def _leave(self, queues: Sequence[str]) -> None:
        for queue in queues:
            presence.leave_worker(self._db, self._ids[queue])

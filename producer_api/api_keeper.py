"""Runs the duties of the API in one of its processes, which leads. Those of the dispatcher are apart.

A duty is here if it needs the storage of files, or prepares jobs as a request does. The others stand by.
"""

import threading
from collections.abc import Sequence

import structlog

from headrace.producer_api.runtime import Runtime
from headrace.store.db.leader_election import lead
from headrace.store.keeper import Duty, Keeper
from headrace.store.periodic import Periodic

_log = structlog.get_logger("headrace.producer_api")

# "batches!": the first duty was theirs. Processes of other releases take the same lock.
LEADER_LOCK = 0x62617463_68657321
SILENCE_S = 60.0
LOOK_S = 1.0
_STOP_S = 3.0


class ApiKeeper:
    """The thread that leads or stands by, and the keeper. ``groups``: the duties of features."""

    def __init__(self, runtime: Runtime, groups: Sequence[Sequence[Duty]]) -> None:
        self._settings = runtime.settings
        self._db = runtime.duties_db
        self._keeper = Keeper(groups, runtime.metrics.duties.note)
        runtime.metrics.duties.begin(duty.name for duty in self._keeper.duties)
        self._stopping = threading.Event()
        self._thread = Periodic("api-keeper", self._lead_or_stand_by, LOOK_S)

    def start(self) -> None:
        """Start if ``keep_batches`` is ``on``."""
        if self._settings.keep_batches == "on":
            self._keeper.start()
            self._thread.start()

    def stop(self) -> None:
        """Begin no more duties; another process takes over. Waits some seconds for those that run."""
        self._stopping.set()
        self._keeper.stop()
        self._thread.stop(5)

    def _lead_or_stand_by(self) -> None:
        with lead(self._db, LEADER_LOCK, silence_s=SILENCE_S) as held:
            if held:
                _log.info("api.leading")
                self._keeper.keep(held, self._stopping, LOOK_S, stop_s=_STOP_S)

"""The loop of a host: it leads while it holds the lock of its name, and its workers end with it.

What it decides in a turn is that of its subclass. While Postgres is away the workers stay as they are.
"""

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection
from typing import Literal

import structlog

from headrace.features.hosts.host_metrics import HostMetrics
from headrace.features.hosts.resident_workers import ResidentWorker, end_left_over
from headrace.store.db.database import Database
from headrace.store.db.leader_election import Leadership, lead
from headrace.store.errors import Conflict, HeadraceError, Unavailable
from headrace.store.hosts.host_reports import HostEvent, PlaceState, last_report, now, remove_report
from headrace.store.settings import Settings
from headrace.workers.health import LoopHeartbeat

log = structlog.get_logger(__name__)

LOOK_S = 0.5
_RETRY_S = 1.0
_END_LOOK_S = 0.05
# The host before this one may have been killed a moment ago.
_OTHER_ENDS_S = 20.0
_LONGEST_TURN_S = 60.0
_MOST_EVENTS = 20

EventKind = Literal["started", "serving", "draining", "ended", "failed"]


class HostLoop(ABC):
    """One host. ``stop`` may be called from another thread. ``budget_bytes``: memory for its workers."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        metrics: HostMetrics,
        budget_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._name = name
        self._metrics = metrics
        self._budget_bytes = budget_bytes
        self._clock = clock
        # One connection holds the lock of the name.
        self._db = Database(settings.database_url, pool_size=2, application_name="headrace-host")
        self._events: deque[HostEvent] = deque(maxlen=_MOST_EVENTS)
        self._started_at = now()
        self._has_led = False
        self._stopping = threading.Event()
        self.heartbeat = LoopHeartbeat(_LONGEST_TURN_S)
        metrics.turn_age.set_function(lambda: self.heartbeat.age_s)

    @abstractmethod
    def _turn(self) -> None:
        """Look, decide, act and report once. Raises Unavailable."""

    @abstractmethod
    def look(self) -> None:
        """Note what became of the workers."""

    @abstractmethod
    def _running(self) -> Collection[ResidentWorker]:
        """Return the workers that have not ended."""

    def stop(self) -> None:
        """Make ``run`` drain the workers and return."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until stopped. Raises Conflict if another host has the name."""
        give_up_at = self._clock() + _OTHER_ENDS_S
        is_away = False
        try:
            while not self._stopping.is_set():
                try:
                    with lead(self._db, _lock_key(self._name)) as held:
                        is_away = False
                        if held is not None:
                            self._end_left_over()
                            self._serve(held)
                        elif not self._running() and self._clock() > give_up_at:
                            raise Conflict(f"a host named {self._name} is running: stop it, or give another --name")
                except Unavailable as error:
                    if not is_away:
                        log.warning("host_not_leading", error=error.message)
                    is_away = True
                self.heartbeat.beat()
                self.look()
                self._stopping.wait(_RETRY_S)
        finally:
            self._end_workers()

    def _serve(self, held: Leadership) -> None:
        self._has_led = True
        log.info("host_leading", host=self._name, budget_bytes=self._budget_bytes)
        while not self._stopping.is_set():
            self.heartbeat.beat()
            held.check()
            self._turn()
            self._stopping.wait(LOOK_S)

    def _note(self, kind: EventKind, queue: str, reason: str) -> None:
        self._events.appendleft(HostEvent(at=now(), queue=queue, kind=kind, reason=reason))
        log.info("host_worker", queue=queue, kind=kind, reason=reason)

    def _end_left_over(self) -> None:
        """Wait for the workers of an earlier host of this name that was killed: they drain."""
        if self._running():
            return
        report = last_report(self._db, self._name)
        pids = [place.pid for place in report.places if place.pid] if report else []
        num_left = end_left_over(self._name, pids, self._settings.drain_s + _OTHER_ENDS_S)
        if num_left:
            log.info("host_left_over_ended", num_workers=num_left)

    def pause(self) -> None:
        time.sleep(_END_LOOK_S)

    def _end_workers(self) -> None:
        for worker in self._running():
            if worker.state is not PlaceState.DRAINING:
                worker.drain()
        while self._running():
            self.look()
            self.pause()
        if self._has_led:  # else the report is that of the host that has the name
            try:
                remove_report(self._db, self._name)
            except HeadraceError as error:
                log.warning("host_not_removed", error=error.message)
        self._db.close()


def _lock_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"headrace model host {name}".encode()).digest()[:8], signed=True)

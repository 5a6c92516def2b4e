"""The fast lane: takes prioritised hints into the worker's spare slots while all other slots are taken.

A full worker takes no message, so the list of prioritised hints (``store.scheduling.backlog``) would wait for a
whole job: jobs of one length that began together also end together. So the engine has a few spare slots, and this
thread fills them from that list alone. It sleeps until Celery was refused. The dispatcher announces a hint that is
lost here again.
"""

import threading
from typing import Protocol

import structlog

from headrace.store.errors import Unavailable
from headrace.store.redis.celery_queue import FastLaneHints
from headrace.workers.runs.engine_admission import EngineAdmission, Ticket

log = structlog.get_logger(__name__)

WAIT_S = 1.0
"""How long to wait for a hint, before it is checked again whether Celery has room."""


def num_spare(max_slots: int) -> int:
    """Return how many slots an engine has besides ``max_slots``, for the fast lane."""
    return max_slots // 4


class UrgentRunner(Protocol):
    """Runs a job: ``workers.runs.job_runner.JobRunner``."""

    def run(self, job_id: str, *, urgent: bool = False) -> object:
        """Run it to its outcome on the calling thread; ``urgent``: claimed at once. Raises nothing."""
        ...


class FastLane:
    """The thread. It takes no hint while there is room for others: then Celery takes prioritised hints first."""

    def __init__(self, hints: FastLaneHints, admission: EngineAdmission, runner: UrgentRunner) -> None:
        self._hints = hints
        self._admission = admission
        self._runner = runner
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="fast-lane", daemon=True)

    def start(self) -> None:
        """Start taking."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more hints; jobs that were taken continue."""
        self._stopped = True
        self._admission.full.set()

    def _run(self) -> None:
        while not self._stopped:
            self._admission.full.wait()
            self._admission.full.clear()
            while not (self._stopped or self._admission.is_closed or self._admission.has_room()):
                self.take()

    def take(self) -> None:
        job_id = self._next()
        if job_id is not None and not self._admission.is_closed:
            ticket = self._admission.take()
            threading.Thread(target=self._run_one, args=(ticket, job_id), name="fast-lane-job", daemon=True).start()

    def _next(self) -> str | None:
        """Return the next hint's job; None if none came in time, or Redis is away."""
        try:
            if self._admission.has_spare_room():
                return self._hints.take(WAIT_S)
        except Unavailable as error:
            log.debug("ahead_not_taken", error=error.message)
        except Exception as error:  # noqa: BLE001 - without this thread a flood would take every slot again
            log.error("ahead_not_taken", error=type(error).__name__)
        self._admission.pause(WAIT_S)
        return None

    def _run_one(self, ticket: Ticket, job_id: str) -> None:
        try:
            with self._admission.working_on(ticket):
                self._runner.run(job_id, urgent=True)
        finally:
            self._admission.give_back(ticket)

"""Takes the hints that go ahead into the worker's spare places while a flood has all the others.

Celery asks for no message while there is no room, and then nobody looks into the list of those that go ahead
(``store.scheduling.fair_share``). Jobs of one length that began together end together, so the next place might be a
whole job's time away. So the engine has a few more places than jobs are taken for, and this thread fills them from that
list alone. It sleeps until Celery was refused. A hint that is lost here is announced again by the dispatcher.
"""

import threading
from typing import Protocol

import structlog

from store.errors import Unavailable
from store.redis.celery_queue import AheadHints
from workers.runs.engine_admission import Admission, Ticket

log = structlog.get_logger(__name__)

WAIT_S = 1.0
"""For a hint, before it is asked again whether Celery has room."""


def num_spare(max_slots: int) -> int:
    """Return how many places more than ``max_slots`` an engine has, for those who go ahead."""
    return max_slots // 4


class Runner(Protocol):
    """What runs a job."""

    def run(self, job_id: str, *, hurries: bool = False) -> object:
        """Run it to its outcome on the calling thread, claimed at once if it ``hurries``; raises nothing."""
        ...


class AheadTaker:
    """The thread. It takes nothing while there is room for others: Celery takes those who go ahead first then."""

    def __init__(self, hints: AheadHints, admission: Admission, runner: Runner) -> None:
        self._hints = hints
        self._admission = admission
        self._runner = runner
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    def start(self) -> None:
        """Start taking."""
        self._thread.start()

    def stop(self) -> None:
        """Take nothing any more; what was taken goes on."""
        self._stopped = True
        self._admission.full.set()

    def _run(self) -> None:
        while not self._stopped:
            self._admission.full.wait()
            self._admission.full.clear()
            while not (self._stopped or self._admission.is_closed or self._admission.has_room()):
                self._take()

    def _take(self) -> None:
        job_id = self._next()
        if job_id is not None and not self._admission.is_closed:
            ticket = self._admission.take()
            threading.Thread(target=self._run_one, args=(ticket, job_id), name="ahead-job", daemon=True).start()

    def _next(self) -> str | None:
        """Return the next hint's job; None if none came in time, or nobody could be asked."""
        try:
            if self._admission.has_spare_room():
                return self._hints.take(WAIT_S)
        except Unavailable as error:
            log.debug("ahead_not_taken", error=error.message)
        except Exception as error:  # noqa: BLE001 - without this thread a flood would have every place again
            log.error("ahead_not_taken", error=type(error).__name__)
        self._admission.pause(WAIT_S)
        return None

    def _run_one(self, ticket: Ticket, job_id: str) -> None:
        try:
            with self._admission.working_on(ticket):
                self._runner.run(job_id, hurries=True)
        finally:
            self._admission.give_back(ticket)

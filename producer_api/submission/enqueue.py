"""Stores jobs and publishes their hints.

All jobs of a call are stored in one transaction. After the commit, another thread publishes their hints. If Redis is
unavailable, the job is accepted without a hint, or its hint is dropped, and the dispatcher publishes it later.
"""

from collections.abc import Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Lock, Thread

import structlog

from store.db.database import Database
from store.db.group_commit import isolated
from store.errors import HeadraceError, Unavailable
from store.jobs import jobs
from store.jobs.jobs import Accepted, NewJob
from store.payloads.job_payload import ServiceClass
from store.redis.celery_queue import Hint, HintPublisher
from store.redis.connection import CircuitBreaker
from store.registry.models import shadow_name
from store.scheduling.fair_share import LaneCandidate, RecentMaximum, within_share

_log = structlog.get_logger("producer_api")

_MAX_JOBS = 256  # of one transaction
_MAX_HINTS = 1000  # of one Redis pipeline


class Enqueuer:
    """Stores jobs. ``depths`` and ``hints`` are two publishers, so that a long publish delays no transaction.

    Safe to use from many threads.
    """

    def __init__(
        self, db: Database, depths: HintPublisher, hints: HintPublisher, breaker: CircuitBreaker, *, ready_window: int
    ) -> None:
        self._db = db
        self._depths = depths
        self._breaker = breaker
        self._ready_window = ready_window
        self._recent_running = RecentMaximum()
        self._sharing = Lock()  # ``RecentMaximum`` is for one thread
        self._accept_isolated = isolated(self._accept)
        self._announcer = _HintThread(hints)

    def start(self) -> None:
        """Start publishing."""
        self._announcer.start()

    def stop(self) -> None:
        """Publish the hints of the jobs that were stored, and stop."""
        self._announcer.stop()
        self._depths.close()

    def accept(self, new: Sequence[NewJob]) -> list[Accepted | Exception]:
        """Store the jobs and let their hints be published; return an outcome for each.

        A job that cannot be stored fails alone. Blocks on Postgres and Redis.
        """
        outcomes: list[Accepted | Exception] = []
        for start in range(0, len(new), _MAX_JOBS):
            outcomes += self._accept_isolated(new[start : start + _MAX_JOBS])
        return outcomes

    def _accept(self, new: Sequence[NewJob]) -> list[Accepted | HeadraceError]:
        has_room = {queue: self._has_room(queue) for queue in {job.queue for job in new}}
        ahead = self._ahead(new)
        outcomes = jobs.accept(
            self._db,
            [replace(job, announce=_is_urgent(job) and has_room[job.queue], goes_ahead=job.id in ahead) for job in new],
        )
        for job, outcome in zip(new, outcomes, strict=True):
            if isinstance(outcome, Accepted) and outcome.announced:
                shadow = shadow_name(job.task, job.model, job.model_version)
                self._announcer.announce(Hint(outcome.job_id, job.queue, shadow, job.id in ahead))
        return outcomes

    def _ahead(self, new: Sequence[NewJob]) -> set[str]:
        """Return the jobs of tenants that have fewer jobs under way than their fair share."""
        urgent = [job for job in new if _is_urgent(job)]
        if not urgent or self._breaker.is_away:
            return set()
        candidates = [LaneCandidate(job.id, job.queue, job.tenant_id, job.class_rank) for job in urgent]
        with self._sharing:
            return within_share(self._db, candidates, self._recent_running)

    def _has_room(self, queue: str) -> bool:
        """True if the queue's ready window in Redis has room; without Redis the backlog waits in Postgres."""
        if self._breaker.is_away:
            return False
        try:
            return self._depths.depth(queue) < self._ready_window
        except Unavailable:
            self._breaker.failed()
            return False


def _is_urgent(job: NewJob) -> bool:
    """True unless the job is of the batch class: only the dispatcher announces those, as far as there is slack.

    A flow is in no worker's queue, and the dispatcher announces its steps.
    """
    return job.service_class is not ServiceClass.BATCH and not job.steps


class _HintThread:
    """A thread that publishes hints, all waiting ones in one call."""

    def __init__(self, publisher: HintPublisher) -> None:
        self._publisher = publisher
        self._hints: SimpleQueue[Hint | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._hints.put(None)
            self._thread.join(timeout=5)
        self._publisher.close()

    def announce(self, hint: Hint) -> None:
        self._hints.put(hint)

    def _run(self) -> None:
        while (hint := self._hints.get()) is not None:
            hints, is_last = self._gather(hint)
            try:
                self._publisher.publish(hints)
            except Unavailable as error:
                # The dispatcher announces these jobs again.
                _log.warning("hints_not_published", jobs=len(hints), reason=error.message)
            except Exception:  # noqa: BLE001 - a defect must not end the thread
                _log.exception("hints_not_published", jobs=len(hints))
            if is_last:
                return

    def _gather(self, first: Hint) -> tuple[list[Hint], bool]:
        """Return the hints that wait now, and whether the thread shall stop after them."""
        hints = [first]
        try:
            while len(hints) < _MAX_HINTS:
                hint = self._hints.get_nowait()
                if hint is None:
                    return hints, True
                hints.append(hint)
        except Empty:
            pass
        return hints, False

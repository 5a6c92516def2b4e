"""Stores jobs and publishes their hints.

Jobs that come while a transaction runs share the next one. After the commit, another thread publishes their hints. If
Redis is unavailable, a job is accepted without a hint, or its hint is dropped, and the dispatcher publishes it later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from headrace.store.db.database import Database
from headrace.store.db.group_commit import GroupCommit, OnBatch, isolated, unobserved
from headrace.store.errors import HeadraceError, Unavailable
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import Accepted, NewJob
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.redis.celery_queue import Hint, HintPublisher
from headrace.store.redis.connection import CircuitBreaker
from headrace.store.redis.hint_announcer import HintAnnouncer
from headrace.store.registry.models import shadow_name
from headrace.store.scheduling.fair_share import LaneCandidate, RecentMaximum, within_share
from headrace.store.schema.job_states import UNSERVED_QUEUE


class Enqueuer:
    """Stores jobs. ``depths`` and ``hints`` are two publishers, so that a long publish delays no transaction.

    Safe to use from many threads.
    """

    def __init__(
        self,
        db: Database,
        depths: HintPublisher,
        hints: HintPublisher,
        breaker: CircuitBreaker,
        *,
        ready_window: int,
        on_batch: OnBatch = unobserved,
    ) -> None:
        self._db = db
        self._depths = depths
        self._breaker = breaker
        self._ready_window = ready_window
        self._recent_running = RecentMaximum()
        self._commits: GroupCommit[NewJob, Accepted] = GroupCommit(isolated(self._accept), on_batch=on_batch)
        self._announcer = HintAnnouncer(hints)

    def start(self) -> None:
        """Start publishing."""
        self._announcer.start()

    def stop(self) -> None:
        """Publish the hints of the jobs that were stored, and stop."""
        self._announcer.stop()
        self._depths.close()

    def accept(self, job: NewJob) -> Accepted:
        """Store the job and let its hint be published, and those of its first steps. Blocks on Postgres and Redis.

        Raises IdempotencyKeyReused, Unavailable, and the errors of ``store.tenants.quotas``.
        """
        return self._commits.join(job)

    def _accept(self, new: Sequence[NewJob]) -> list[Accepted | HeadraceError]:
        has_room = {queue: self._has_room(queue) for queue in {one.queue for job in new for one in (job, *job.steps)}}
        ahead = self._ahead(new)
        outcomes = jobs.accept(self._db, [_to_announce(job, has_room, ahead) for job in new])
        for job, outcome in zip(new, outcomes, strict=True):
            if isinstance(outcome, Accepted):
                for one in (job, *job.steps):
                    if one.id in outcome.hinted:
                        shadow = shadow_name(one.task, one.model, one.model_version)
                        self._announcer.announce(Hint(one.id, one.queue, shadow, one.id in ahead))
        return outcomes

    def _ahead(self, new: Sequence[NewJob]) -> set[str]:
        """Return the jobs of tenants that have fewer jobs under way than their fair share."""
        urgent = [job for job in new if _is_urgent(job)]
        if not urgent or self._breaker.is_away:
            return set()
        candidates = [LaneCandidate(job.id, job.queue, job.tenant_id, job.class_rank) for job in urgent]
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

    A flow, and a step that waits for others, is in no worker's queue.
    """
    return job.service_class is not ServiceClass.BATCH and job.queue != UNSERVED_QUEUE


def _to_announce(job: NewJob, has_room: Mapping[str, bool], ahead: set[str]) -> NewJob:
    """Return the job with what is to be announced at once: it, or its first steps."""
    steps = tuple(replace(step, announce=_is_urgent(step) and has_room[step.queue]) for step in job.steps)
    announce = _is_urgent(job) and has_room[job.queue]
    return replace(job, announce=announce, goes_ahead=job.id in ahead, steps=steps)

"""Stores jobs and publishes their hints.

Jobs that come while a transaction runs share the next one. After the commit, another thread publishes their hints. If
Redis is unavailable, a job is accepted without a hint, or its hint is dropped, and the dispatcher publishes it later.

A digest of the request is stored to recognise it when it is sent again. With digest keys (``store.digests``) the digest
is of the request as it was sent. Without keys, if a
policy has changed the request, the digest is of the changed request only: a plain digest would let a reader of the
database guess the replaced text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import orjson

from headrace.store.db.database import Database
from headrace.store.db.group_commit import GroupCommit, OnBatch, isolated, unobserved
from headrace.store.digests import Digests
from headrace.store.errors import HeadraceError, InvalidRequest, Unavailable
from headrace.store.jobs import jobs
from headrace.store.jobs.acceptance import Idempotency
from headrace.store.jobs.face_row import FaceRow
from headrace.store.jobs.jobs import Accepted, NewJob
from headrace.store.payloads.job_payload import JobTerms, ServiceClass
from headrace.store.redis.celery_queue import Hint, HintPublisher
from headrace.store.redis.connection import CircuitBreaker
from headrace.store.redis.hint_announcer import HintAnnouncer
from headrace.store.registry.models import shadow_name
from headrace.store.scheduling.backlog import LaneCandidate, RecentMaximum, within_share
from headrace.store.schema.job_states import UNSERVED_QUEUE

MAX_KEY_CHARS = 255


class RequestDigests:
    """Makes the digests of requests."""

    def __init__(self, digests: Digests) -> None:
        self._digests = digests

    @property
    def is_keyed(self) -> bool:
        """True if digests may contain text that a policy removes."""
        return self._digests.is_keyed

    def of(self, purpose: str, content: bytes) -> list[str]:
        """Return the digests of a content, the first of which is stored."""
        return self._digests.of(purpose, content)

    def fingerprints(self, sent: str) -> list[str]:
        """Return the fingerprints of a request, the first of which is stored. ``sent``: the digest of all its bytes."""
        return self._digests.of("request", sent.encode())

    def idempotency(
        self,
        route: str,
        key: str | None,
        request: JobTerms,
        response: FaceRow | None,
        *,
        is_stored: bool | None = None,
    ) -> Idempotency | None:
        """Return the Idempotency-Key with the digests of its request. Raises InvalidRequest."""
        if key is None:
            return None
        if not 0 < len(key) <= MAX_KEY_CHARS:
            raise InvalidRequest(f"an Idempotency-Key has 1 to {MAX_KEY_CHARS} characters", param="Idempotency-Key")
        asked = request.model_dump(mode="json")
        if asked["start_after"] is None:
            # The field is newer than digests that are stored: without it the digest stays the same.
            del asked["start_after"]
        asked |= request.digest_fields()
        if is_stored is not None:
            asked["store"] = is_stored
        if response is not None:
            asked = response.digested(asked)
        body = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
        first, *others = self._digests.of("body", body)
        return Idempotency(route, key, first, tuple(others))


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

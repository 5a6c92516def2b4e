"""Claims, finishes, releases and renews jobs in Postgres, many jobs in one statement.

It knows the owner's name, the queue and how long to retry when Postgres is away; it knows no engine. Every write
carries the fencing epoch, so retries are safe: the database refuses a write that comes too late.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog

from headrace.store.db.database import Database
from headrace.store.db.group_commit import GroupCommit, OnBatch, isolated, unobserved
from headrace.store.errors import Unavailable
from headrace.store.jobs import claims
from headrace.store.jobs.claims import Claim, Finish, Release, Renewal, RowLocked, Unclaimed
from headrace.store.scheduling import dispatch_queries
from headrace.store.scheduling.dispatch_queries import Claimable, Closer, RoundRobin
from headrace.store.tasks.registry import BULKY_OUTPUTS
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.parent_work import NO_PARENTS, ParentWork

log = structlog.get_logger(__name__)
T = TypeVar("T")

RETRY_S = 0.25

LOCKED_S = 4.0
"""How long a claim waits for a locked row: a little longer than Postgres allows a session to be idle in a transaction.
Afterwards the hint is dropped, and the dispatcher announces the job again."""

MOMENT_S = 0.05
LAST_TRIES = 20
"""How often a stopping worker tries to give back a job with a locked row. A renewal of leases locks the rows of all
jobs for a moment."""

MAX_RELEASED_TOKENS = 65_536
"""Tokens in one statement, so that handing back many long outputs holds no lock for long."""

MAX_FINISHED_CHARS = 16_000_000
"""Characters of vectors in one statement, so that a database with little memory can take it."""

CLAIM_PACE_S = 0.025
FINISH_PACE_S = 0.04
"""Least time between two commits of one kind: a job waits at most this long for others to share its commit. A claim is
shorter, because a client waits for the first token of an unclaimed job."""

# Other workers look at the same list.
_SUSPECTS_TRIED = 8


class ClaimClient:
    """Group commit: concurrent callers share a statement and a commit."""

    def __init__(
        self,
        db: Database,
        *,
        owner: str,
        queue: str,
        lease_s: float,
        stopping: threading.Event,
        capacity: Callable[[], int | None] = lambda: None,
        engine: Callable[[], str | None] = lambda: None,
        adapters: Callable[[], Sequence[str]] = lambda: (),
        observer: Callable[[str], OnBatch] = lambda _commit: unobserved,
        parents: ParentWork = NO_PARENTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._owner = owner
        self._queue = queue
        self._lease_s = lease_s
        self._stopping = stopping
        # As in ``store.jobs.claims.claim``.
        self._capacity = capacity
        self._engine = engine
        # The queues of adapters, which this worker serves beside its own.
        self._adapters = adapters
        self._parents = parents
        self._clock = clock
        self._round_robin = RoundRobin()
        # One claim at a time, so that the claims in Postgres can be compared with those known here.
        self._claiming = threading.RLock()
        self._known: WeakValueDictionary[tuple[str, int], Claim] = WeakValueDictionary()
        self._in_doubt_until = 0.0
        self.claims: GroupCommit[str, Claim | None] = GroupCommit(
            isolated(self._claim_all), pace_s=CLAIM_PACE_S, on_batch=observer("claim")
        )
        self._finishes: GroupCommit[Finish, bool] = GroupCommit(
            isolated(self._finish_all), pace_s=FINISH_PACE_S, on_batch=observer("finish")
        )
        self._releases: GroupCommit[Release, bool] = GroupCommit(
            isolated(self._release_all), on_batch=observer("release")
        )
        # Steps apart: what follows for their flows may wait for rows that other transactions have locked.
        self._step_finishes: GroupCommit[Finish, bool] = GroupCommit(
            isolated(self._finish_all), pace_s=FINISH_PACE_S, on_batch=observer("finish")
        )
        self._step_releases: GroupCommit[Release, bool] = GroupCommit(
            isolated(self._release_all), on_batch=observer("release")
        )

    def claim(self, job_id: str, *, urgent: bool = False) -> Attempt | None:
        """Claim a job. ``urgent``: without waiting for others to share the statement.

        Returns None if the job cannot be claimed (done, claimed by another worker, cancelled) or the worker is
        stopping. While Postgres is away it retries: the message is acknowledged already, and to take more messages
        would only empty the queue.
        """
        give_up_at = self._clock() + LOCKED_S
        while not self._stopping.is_set():
            sent_at = self._clock()
            try:
                claim = self.claims.join(job_id, urgent=urgent)
            except RowLocked:
                if sent_at > give_up_at:
                    return None
                self._stopping.wait(RETRY_S)
            except Unavailable as error:
                log.warning("claim_waits", job_id=job_id, error=error.message)
                self._stopping.wait(RETRY_S)
            else:
                return None if claim is None else self._attempt(claim, sent_at)
        return None

    def unclaimed(self, job_id: str) -> Unclaimed | None:
        """Return why a job could not be claimed; None if it is gone, or Postgres does not say."""
        try:
            return claims.unclaimed(self._db, job_id)
        except Unavailable:
            return None

    def claimable(self) -> Claimable:
        """Return which jobs of the worker's queues can be claimed without a message. Raises Unavailable."""
        return dispatch_queries.claimable(self._db, *self._queues())

    def closing(self, *, heed_load: bool) -> AbstractContextManager[Closer | None]:
        """Make this worker the closer of its queue during a block, if possible: see ``dispatch_queries.closing``."""
        return dispatch_queries.closing(
            self._db, self._queue, self._owner, heed_load=heed_load, adapters=self._adapters()
        )

    def claim_waiting(self, most: int) -> list[Attempt]:
        """Claim the next jobs without a message, at most ``most``, of all queues alike. Raises Unavailable."""
        queues, job_ids = self._queues(), list[str]()
        for number, queue in enumerate(queues):
            share = -(-(most - len(job_ids)) // (len(queues) - number))
            job_ids += dispatch_queries.claim_candidates(self._db, queue, share, round_robin=self._round_robin)
        return self._claim_directly(job_ids, suspects=False)

    def claim_suspect(self) -> Attempt | None:
        """Claim a crash suspect; None if there is none. Raises Unavailable."""
        for queue in self._queues():
            for job_id in dispatch_queries.claim_candidates(self._db, queue, _SUSPECTS_TRIED, suspects=True):
                if attempts := self._claim_directly([job_id], suspects=True):
                    return attempts[0]
        return None

    def _queues(self) -> tuple[str, ...]:
        return self._queue, *self._adapters()

    def _claim_directly(self, job_ids: Sequence[str], *, suspects: bool) -> list[Attempt]:
        if not job_ids or self._stopping.is_set():
            return []
        sent_at = self._clock()
        found = self._claim(job_ids, suspects=suspects)
        return [self._attempt(claim, sent_at) for claim in found.values()]

    def _claim(self, job_ids: Sequence[str], *, suspects: bool = False) -> dict[str, Claim]:
        with self._claiming:
            self.give_back_lost()
            try:
                found = self._take(job_ids, suspects=suspects)
            except Exception:
                # The claim may be stored although its answer was lost.
                self._in_doubt_until = self._clock() + self._lease_s
                raise
            self._known.update({(claim.job_id, claim.epoch): claim for claim in found.values()})
            return found

    def _take(self, job_ids: Sequence[str], *, suspects: bool) -> dict[str, Claim]:
        return claims.claim(
            self._db,
            self._owner,
            self._queue,
            job_ids,
            self._lease_s,
            suspects=suspects,
            capacity=self._capacity(),
            engine=self._engine(),
            adapters=self._adapters(),
            on_begun=self._parents.begun,
        )

    def give_back_lost(self) -> None:
        """Release, uncharged, the jobs that Postgres has claimed for this worker but the worker does not know.

        The answer to their claim was lost; without this their leases would expire and count as a crash. It asks
        Postgres only within one lease after a claim that failed. Raises Unavailable.
        """
        if self._clock() >= self._in_doubt_until:
            return
        with self._claiming:
            owned = claims.owned(self._db, self._owner)
            lost = [one for one in owned if (one.job_id, one.epoch) not in self._known]
            if lost:
                log.warning("lost_claims_given_back", num_jobs=len(lost))
                claims.release(self._db, lost)

    def _attempt(self, claim: Claim, sent_at: float) -> Attempt:
        now = self._clock()
        return Attempt(claim, sent_at, None if claim.remaining_s is None else now + claim.remaining_s, now)

    def finish(self, finish: Finish, *, until: Callable[[], float]) -> bool:
        """Write an outcome; False if this attempt does not own the job any more.

        Raises Unavailable if Postgres is still away at ``until()``, a reading of the monotonic clock: the sweeper has
        taken the job by then. The sweeper cannot take a job with a locked row, so for a locked row (its own or its
        flow's) it retries for as long as the worker runs.
        """
        commit = self._finishes if finish.parent_id is None else self._step_finishes
        is_in_doubt, pause_s = False, MOMENT_S
        while True:
            try:
                return commit.join(finish) or (is_in_doubt and claims.has_ended(self._db, finish))
            except Unavailable as error:
                is_locked = isinstance(error, RowLocked)
                # The end may be stored although its answer was lost.
                is_in_doubt |= not is_locked
                waits_for_row = is_locked and not self._stopping.is_set()
                if self._clock() > until() and not waits_for_row:
                    raise
                log.warning("finish_waits", job_id=finish.job_id, error=error.message)
                # Soon at first: two steps of a flow often end together.
                time.sleep(pause_s if is_locked else RETRY_S)
                pause_s = min(RETRY_S, pause_s * 2)

    def give_back(self, release: Release, *, until: Callable[[], float]) -> bool:
        """Put a job back into the queue with its output so far; False if this attempt does not own it any more.

        Raises Unavailable if Postgres is still away, or the row locked, at ``until()`` or when the worker is stopping;
        a stopping worker tries a locked row ``LAST_TRIES`` times.
        """
        commit = self._releases if release.parent_id is None else self._step_releases
        num_last = 0
        while True:
            try:
                return commit.join(release)
            except Unavailable as error:
                if isinstance(error, RowLocked) and self._stopping.is_set() and num_last < LAST_TRIES:
                    num_last += 1
                    time.sleep(MOMENT_S)
                    continue
                if self._stopping.is_set() or self._clock() > until():
                    raise
                log.warning("release_waits", job_id=release.job_id, error=error.message)
                self._stopping.wait(RETRY_S)

    def release(self, attempts: Iterable[Attempt], *, charge: bool, crashed: bool = False) -> set[str]:
        """Put jobs back into the queue; return the ids of those that were still owned. Raises Unavailable.

        Jobs with a row that is still locked after ``LAST_TRIES`` are left to the dispatcher.
        """
        releases = [
            Release(one.job_id, one.epoch, charge=charge, crashed=crashed, parent_id=one.claim.parent_id)
            for one in attempts
        ]
        # Steps last and apart: what follows for their flows may wait for rows that other transactions have locked.
        plain = [release for release in releases if release.parent_id is None]
        return self._release_now(plain) | self._release_now([one for one in releases if one.parent_id is not None])

    def _release_now(self, given: Sequence[Release]) -> set[str]:
        all_released: set[str] = set()
        for _ in range(LAST_TRIES):
            if not given:
                break
            released = claims.release(self._db, given)
            all_released |= released
            answers = self._accepted(given, released)
            given = [one for one, answer in zip(given, answers, strict=True) if isinstance(answer, Unavailable)]
            if given:
                time.sleep(MOMENT_S)
        return all_released

    def renew(self, epochs: Mapping[str, int]) -> Renewal:
        """Renew the leases of all jobs. Raises Unavailable."""
        return claims.renew(self._db, self._owner, epochs, self._lease_s)

    def _claim_all(self, job_ids: Sequence[str]) -> list[Claim | Unavailable | None]:
        found = self._claim(job_ids)
        missing = [job_id for job_id in job_ids if job_id not in found]
        try:
            locked = self._still_open(missing) if missing else set()
        except Unavailable as error:
            # The claims are stored, so they go to their callers. Only the others try again.
            return [found.pop(job_id, error) for job_id in job_ids]
        # Of two hints for one job in a batch the first gets the claim, the second None.
        return [RowLocked(job_id) if job_id in locked else found.pop(job_id, None) for job_id in job_ids]

    def _still_open(self, missing: Sequence[str]) -> set[str]:
        return claims.still_open(self._db, self._queue, missing, capacity=self._capacity(), adapters=self._adapters())

    def _finish_all(self, finishes: Sequence[Finish]) -> list[bool | Unavailable]:
        accepted: set[str] = set()
        for part in parts(finishes, _num_bulky_chars, MAX_FINISHED_CHARS):
            accepted |= claims.finish(self._db, part, self._parents.settled)
        return self._accepted(finishes, accepted)

    def _release_all(self, releases: Sequence[Release]) -> list[bool | Unavailable]:
        accepted: set[str] = set()
        for part in parts(releases, num_checkpoint_tokens, MAX_RELEASED_TOKENS):
            accepted |= claims.release(self._db, part)
        return self._accepted(releases, accepted)

    def _accepted(self, given: Sequence[Finish | Release], accepted: Collection[str]) -> list[bool | Unavailable]:
        """Return for each row whether it was accepted; an error if it was not, and can be tried again.

        RowLocked: its row was locked.
        """
        missing = {one.job_id: one.epoch for one in given if one.job_id not in accepted}
        try:
            locked = claims.still_running(self._db, missing) if missing else set()
        except Unavailable as error:
            return [one.job_id in accepted or error for one in given]
        return [RowLocked(one.job_id) if one.job_id in locked else one.job_id in accepted for one in given]


def parts(items: Sequence[T], size_of: Callable[[T], int], most: int) -> list[list[T]]:
    """Divide items into parts of at most size ``most``, or of one item."""
    divided: list[list[T]] = [[]]
    room = most
    for item in items:
        size = size_of(item)
        if size > room and divided[-1]:
            divided.append([])
            room = most
        divided[-1].append(item)
        room -= size
    return divided


def num_checkpoint_tokens(release: Release) -> int:
    return 0 if release.checkpoint is None else len(release.checkpoint.tokens)


def _num_bulky_chars(finish: Finish) -> int:
    """Return the characters of an output's bulky fields; the others are short beside them, and are not counted."""
    output = finish.output or {}
    parts = (part for name in BULKY_OUTPUTS for part in output.get(name, ()))
    return sum(len(part if isinstance(part, str) else repr(part)) for part in parts)

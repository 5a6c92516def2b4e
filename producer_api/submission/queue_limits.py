"""Limits of queued jobs and tokens, for each tenant and for all together.

Jobs are refused here before they are accepted; after a 202 no job is refused for load. A snapshot of the queue is read
a few times a second, and the jobs that this process has accepted since are added. So one process keeps the limits
exactly; several may exceed them by the jobs that the others accept between two snapshots. Below a sixteenth of every
limit a snapshot is used for longer: up to sixteen such processes cannot reach the limit together.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from threading import Lock

from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, RateLimited
from headrace.store.jobs.jobs import Accepted, Job, NewJob, is_known
from headrace.store.scheduling import backlog
from headrace.store.scheduling.backlog import Backlog, Load, QueuePosition
from headrace.store.scheduling.service_rate import Rate
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tasks.registry import TASKS

KEEP_S = 0.25
"""A snapshot is used for this long, or longer if reading one takes more than a twentieth of that."""

KEEP_FAR_S = 10.0
"""The same while every count is far below its limit."""

LONGEST_RETRY_S = 120.0
_RETRY_UNKNOWN_S = 5.0
_SHARE_OF_TIME = 20
_FAR = 16
_ALL_TENANTS = ""

Tally = defaultdict[str, Load]


class QueueLimits:
    """Counts queued jobs and tokens, and refuses jobs over the limits. Safe to use from many threads."""

    def __init__(self, settings: Settings, db: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self.clock = clock
        self._of_all = Load(settings.max_queued_jobs, settings.max_queued_tokens)
        # For a tenant without a token limit of its own.
        self._tenant = Load(settings.max_queued_jobs_per_tenant, settings.max_queued_tokens_per_tenant)
        self._lock = Lock()
        self._reading = Lock()
        self._backlog: Backlog | None = None
        self._until = -math.inf
        self._read_at = -math.inf
        # Jobs that are being stored; jobs stored since the snapshot; jobs stored since the next snapshot is being read.
        self._entering: Tally = defaultdict(Load)
        self._stored: Tally = defaultdict(Load)
        self._stored_later: Tally = defaultdict(Load)
        self._retry_until: defaultdict[str, float] = defaultdict(lambda: -math.inf)

    def backlog(self) -> Backlog:
        """Return the snapshot, at most KEEP_S old. Blocks on Postgres when it is time for a new one."""
        found = self._backlog
        if found is not None and (self.clock() < self._until or not self._reading.acquire(blocking=False)):
            return found
        if found is None:
            self._reading.acquire()
        try:
            return self._read() if self.clock() >= self._until or self._backlog is None else self._backlog
        finally:
            self._reading.release()

    def slack(self, tenant_id: str) -> int:
        """Return how many more lines of batches may be queued. They use at most half of each limit."""
        found = self.backlog()
        left = []
        for owner, bound in ((tenant_id, self._tenant), (None, self._of_all)):
            queued = found.queued(tenant_id=owner)
            left.append(bound.jobs // 2 - queued.jobs if queued.tokens < bound.tokens // 2 else 0)
        return max(0, min(left))

    def _read(self) -> Backlog:
        began = self.clock()
        with self._lock:
            self._stored_later = defaultdict(Load)
        found = backlog.read_backlog(self._db)
        with self._lock:
            self._backlog = found
            self._stored, self._stored_later = self._stored_later, defaultdict(Load)
            took_s = self.clock() - began
            self._read_at = self.clock()
            self._until = self._read_at + max(KEEP_S, _SHARE_OF_TIME * took_s)
        return found

    def place_of(self, job: Job) -> QueuePosition | None:
        """Return the position of a queued job; None if it is not queued, or too far back to count."""
        return None if job.state is not JobState.QUEUED else backlog.find_position(self._db, self.backlog(), job)

    def accept(self, job: NewJob, store: Callable[[NewJob], Accepted], *, has_deadline: bool = False) -> Accepted:
        """Store the job if it is within the limits and can start before its deadline; return what ``store`` returns.

        ``has_deadline``: its owner set the deadline. Raises RateLimited (``queue_full``), InvalidRequest
        (``deadline_unreachable``), and what ``store`` raises. A job is not refused if its Idempotency-Key was accepted
        before.
        """
        try:
            if has_deadline:
                self._check_deadline(job)
            self._enter(job)
        except (InvalidRequest, RateLimited):
            if job.idempotency is None or not is_known(self._db, job.tenant_id, job.idempotency):
                raise
            return store(job)
        outcome: Accepted | None = None
        try:
            outcome = store(job)
        finally:
            self._leave(job, outcome)
        return outcome

    def _check_deadline(self, job: NewJob) -> None:
        """Raise InvalidRequest if the job cannot meet its deadline at the measured rate. Without a rate it may try."""
        run_s = backlog.least_run_s(self._db, job) if TASKS[job.task].cost_is_time else None
        if run_s is not None and run_s > job.deadline_s:
            raise InvalidRequest(
                f"the job alone would take about {run_s:.1f} s, as the shortest of your last ones, and its deadline"
                f" is {job.deadline_s:g} s: give it more time, or ask for less",
                code="deadline_unreachable",
                param="deadline_ms",
            )
        wait_s = backlog.too_long_a_wait_s(self._db, self.backlog(), job)
        if wait_s is not None:
            raise InvalidRequest(
                f"the job would start in about {wait_s:.0f} s, after its deadline of {job.deadline_s:g} s: give it"
                " more time or a better service class",
                code="deadline_unreachable",
                param="deadline_ms",
            )

    def _enter(self, job: NewJob) -> None:
        load, bound = Load(1, job.queued_tokens), self._bound_of(job)
        if load.tokens > min(bound.tokens, self._of_all.tokens):
            raise InvalidRequest(
                f"prompt and max_tokens are {load.tokens} tokens together, more than may be queued: ask for fewer",
                param="sampling.max_tokens",
            )
        found = self._far_from_full(job.tenant_id, load, bound) or self.backlog()
        with self._lock:
            self._refuse_over(found, job.tenant_id, load, bound)
            _count(self._entering, job.tenant_id, load)

    def _far_from_full(self, tenant_id: str, load: Load, of_tenant: Load) -> Backlog | None:
        """Return the current snapshot if it is not too old and every count is far below its limit."""
        found = self._backlog
        if found is None or self.clock() - self._read_at >= KEEP_FAR_S:
            return None
        with self._lock:
            levels = [(bound, queued + load) for _, bound, queued in self._levels(found, tenant_id, of_tenant)]
        is_far = all(_FAR * q.jobs <= bound.jobs and _FAR * q.tokens <= bound.tokens for bound, q in levels)
        return found if is_far else None

    def _levels(self, found: Backlog, tenant_id: str, of_tenant: Load) -> Iterator[tuple[str, Load, Load]]:
        """Yield the key, the limit and the queued load, of the tenant and then of all. The lock must be held."""
        for key, bound in ((tenant_id, of_tenant), (_ALL_TENANTS, self._of_all)):
            queued = found.queued(tenant_id=key or None)
            yield key, bound, queued + self._entering.get(key, Load()) + self._stored.get(key, Load())

    def _bound_of(self, job: NewJob) -> Load:
        tokens = None if job.limits is None else job.limits.tenant.queued_tokens
        return self._tenant if tokens is None else Load(self._tenant.jobs, tokens)

    def _leave(self, job: NewJob, outcome: Accepted | None) -> None:
        load = Load(1, job.queued_tokens)
        with self._lock:
            _count(self._entering, job.tenant_id, Load() - load)
            if outcome is not None and not outcome.replayed:
                _count(self._stored, job.tenant_id, load)
                _count(self._stored_later, job.tenant_id, load)

    def _refuse_over(self, found: Backlog, tenant_id: str, load: Load, of_tenant: Load) -> None:
        for key, bound, queued in self._levels(found, tenant_id, of_tenant):
            owner = key or None
            over = queued + load - bound
            if over.jobs > 0 or over.tokens > 0:
                retry_after_s = self._retry_after_s(key, over, load, found.drain_rate(tenant_id=owner))
                raise RateLimited(_full(queued, bound, over, owner), retry_after_s=retry_after_s, code="queue_full")

    def _retry_after_s(self, key: str, over: Load, load: Load, rate: Rate | None) -> float:
        """Return when there will be room. Each refused caller gets a later time, as fast as the queue drains."""
        if rate is None:
            return _RETRY_UNKNOWN_S
        now = self.clock()
        at = max(now + _time_for(over, rate), self._retry_until[key] + _time_for(load, rate))
        self._retry_until[key] = min(at, now + LONGEST_RETRY_S)
        return self._retry_until[key] - now


def _count(tally: Tally, tenant_id: str, load: Load) -> None:
    for key in (tenant_id, _ALL_TENANTS):
        tally[key] += load
        if not tally[key].jobs:
            del tally[key]


def _time_for(load: Load, rate: Rate) -> float:
    """Return the seconds until this load is served."""
    return max(_seconds(load.jobs, rate.jobs_per_s), _seconds(load.tokens, rate.tokens_per_s))


def _seconds(amount: int, per_s: float) -> float:
    if amount <= 0:
        return 0.0
    return amount / per_s if per_s else math.inf


def _full(queued: Load, bound: Load, over: Load, tenant_id: str | None) -> str:
    what, most = (f"{queued.jobs} jobs", bound.jobs) if over.jobs > 0 else (f"{queued.tokens} tokens", bound.tokens)
    if tenant_id is None:
        return "the queue is full: try again when some have ended"
    return f"you have {what} queued, and {most} are the most that one tenant may have: try again when some have ended"

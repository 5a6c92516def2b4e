"""A snapshot of the queued jobs, and what follows from it: a job's queue position and its expected start.

It is read from the counts that triggers on ``jobs`` keep, so its cost does not depend on the number of queued jobs. It
grows with the number of tenants that have queued jobs. Waits follow from the measured service rate and are None without
one.

Fair share chooses the jobs that may take the fast lane, because their tenants have less in flight than an equal share.
The ready window is first in, first out. The other tenants would wait behind a tenant that fills it, however fair the
order is in which jobs enter it. So a job takes the fast lane while its tenant's running and announced jobs, including
this one, are not more than

    running jobs of the queue / tenants with jobs in flight

By this rule the jobs in the fast lane never use more than their share of the running jobs, and no tenant starves. With
more tenants than running jobs the lane is empty. A waiting job of a better class is never overtaken.

A job also takes the lane if jobs of a worse class stand in the ready window, whose length they would otherwise add to
its wait. Then only jobs of its class and of better ones are counted, its own tenant's too, against three quarters of
the running jobs: the last quarter goes to the window, so that the worse class goes on.

Jobs of the same length that started together end together, and for a moment none runs. A job that arrives then would
wait for a whole job. So the number of running jobs is the maximum of the last second.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, TextClause, text

from headrace.store.db.database import Database, with_setting
from headrace.store.jobs.jobs import Job, NewJob
from headrace.store.scheduling.dispatch_queries import BY_INDEX
from headrace.store.scheduling.service_rate import KNOWN_FOR_S, Rate
from headrace.store.schema.job_states import UNSERVED_QUEUE, JobState

MAX_AHEAD = 2_000
"""Positions further back among a tenant's own jobs are not counted, because counting reads every row in between."""

# More announced jobs than this are a mistake in the settings; the rest is not read.
_MOST_ANNOUNCED = 20_000

_LONGEST_S = 10 * 365 * 86_400.0


# Read the queued and announced load by queue, tenant and class. The view contains the changes that the dispatcher has
# not folded yet, so the figures are exact whether it runs or not.
_SHARES = text("""
WITH counted AS (
    SELECT queue, tenant_id, class_rank, jobs, tokens FROM queue_counts
), queued AS (
    SELECT queue, tenant_id, class_rank, CAST(sum(jobs) AS bigint) AS jobs, CAST(sum(tokens) AS bigint) AS tokens
    FROM counted GROUP BY queue, tenant_id, class_rank HAVING sum(jobs) > 0
), announced AS (
    SELECT queue, tenant_id, class_rank, count(*) AS jobs, sum(cost) AS tokens FROM (
        SELECT queue, tenant_id, class_rank, cost FROM queue_lines
        WHERE state = 'queued' AND announced_at IS NOT NULL LIMIT :most
    ) AS lines GROUP BY queue, tenant_id, class_rank
)
SELECT queue, tenant_id, class_rank, queued.jobs, queued.tokens,
    COALESCE(announced.jobs, 0) AS announced_jobs, COALESCE(announced.tokens, 0) AS announced_tokens
FROM queued LEFT JOIN announced USING (queue, tenant_id, class_rank)
""")

# Read the service rates that were measured lately.
_RATES = text("""
SELECT queue, jobs_per_s, tokens_per_s FROM queue_rates
WHERE measured_at > now() - make_interval(secs => :known_for_s)
""")

# Read the time of the snapshot and the paused queues.
_NOW = text("SELECT now() AS at, ARRAY(SELECT queue FROM queue_controls) AS paused")

# Count the announced jobs before an announced job. All announced jobs are ahead of the waiting ones.
_AHEAD_OF_ANNOUNCED = text("""
SELECT count(*) AS jobs, CAST(COALESCE(sum(cost), 0) AS bigint) AS tokens FROM (
    SELECT cost FROM queue_lines
    WHERE queue = :queue AND state = 'queued' AND (announced_at, id) < (:announced_at, :id)
    LIMIT :most
) AS ahead
""")

# Count the waiting jobs before a job among its tenant's jobs of the same class.
_AHEAD_IN_LINE = text("""
SELECT count(*) AS jobs, CAST(COALESCE(sum(cost), 0) AS bigint) AS tokens FROM (
    SELECT GREATEST(cost_tokens, input_tokens) AS cost FROM jobs
    WHERE queue = :queue AND class_rank = :class_rank AND tenant_id = :tenant_id
        AND state = 'queued' AND announced_at IS NULL AND NOT is_suspect
        AND (priority, deadline_at, id) < (CAST(:priority AS smallint), COALESCE(
            CAST(:deadline_at AS timestamptz), now() + make_interval(secs => CAST(:deadline_s AS float8))), :id)
    LIMIT :most
) AS ahead
""")


@dataclass(frozen=True, slots=True)
class Load:
    """A number of jobs and of their tokens, prompt and ``max_tokens`` together."""

    jobs: int = 0
    tokens: int = 0

    def __add__(self, other: "Load") -> "Load":
        return Load(self.jobs + other.jobs, self.tokens + other.tokens)

    def __sub__(self, other: "Load") -> "Load":
        return Load(self.jobs - other.jobs, self.tokens - other.tokens)

    def first_tokens(self, most: int) -> "Load":
        """Return a part of this load with about ``most`` tokens."""
        return self if self.tokens <= most else Load(self.jobs * most // self.tokens, most)


@dataclass(frozen=True, slots=True)
class TenantBacklog:
    """The queued jobs of one tenant in one class of a queue. ``announced`` is the part in the ready window."""

    queue: str
    tenant_id: str
    class_rank: int
    queued: Load
    announced: Load

    @property
    def waiting(self) -> Load:
        """The part that waits in Postgres."""
        return self.queued - self.announced


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """The position of a queued job: 1 is next. ``starts_at`` is None while the rate is not known."""

    position: int
    starts_at: datetime | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """The snapshot. ``rates`` has the queues with a known rate, ``paused`` the paused queues."""

    shares: tuple[TenantBacklog, ...]
    rates: dict[str, Rate]
    paused: frozenset[str]
    at: datetime

    @property
    def computed(self) -> tuple[TenantBacklog, ...]:
        """The entries of jobs that a worker computes, without those that wait for the answer of another job."""
        return tuple(share for share in self.shares if share.queue != UNSERVED_QUEUE)

    def shares_of(self, queue: str, tenant_id: str | None = None) -> list[TenantBacklog]:
        """Return the entries of a queue, of all tenants or of one."""
        return [s for s in self.shares if s.queue == queue and tenant_id in (None, s.tenant_id)]

    def queued(self, *, queue: str | None = None, tenant_id: str | None = None) -> Load:
        """Return the load of all queued jobs, or of one queue, or of one tenant."""
        return _sum(
            share.queued
            for share in self.shares
            if queue in (None, share.queue) and tenant_id in (None, share.tenant_id)
        )

    def ahead(self, queue: str, class_rank: int, tenant_id: str, own: Load) -> Load:
        """Return the load that is served before a waiting job with ``own`` of its own tenant and class before it.

        That is the ready window, the better classes, and in its own class about as many tokens of each other tenant,
        by the fair order. Turns that go to the longest-waiting jobs are left out.
        """
        found = self.shares_of(queue)
        window = _sum(share.announced for share in found)
        better = _sum(share.waiting for share in found if share.class_rank < class_rank)
        peers = (s for s in found if s.class_rank == class_rank and s.tenant_id != tenant_id)
        return window + better + own + _sum(peer.waiting.first_tokens(own.tokens) for peer in peers)

    def wait_s(self, queue: str, ahead: Load) -> float | None:
        """Return how long the workers need to start the load ``ahead``; None if the rate is not known."""
        rate = self.rates.get(queue)
        if rate is None or queue in self.paused or not rate.tokens_per_s:
            return None
        return ahead.tokens / rate.tokens_per_s

    def drain_rate(self, *, tenant_id: str | None = None) -> Rate | None:
        """Return how fast all queues together are served, or one tenant's jobs by its fair share; None if unknown."""
        rates = [self._rate_for(queue, tenant_id) for queue in self.rates if queue not in self.paused]
        known = [rate for rate in rates if rate is not None]
        if not known:
            return None
        return Rate(sum(rate.jobs_per_s for rate in known), sum(rate.tokens_per_s for rate in known))

    def _rate_for(self, queue: str, tenant_id: str | None) -> Rate | None:
        rate = self.rates[queue]
        tenants = {share.tenant_id for share in self.shares_of(queue)}
        if tenant_id is None:
            return rate
        return Rate(rate.jobs_per_s / len(tenants), rate.tokens_per_s / len(tenants)) if tenant_id in tenants else None


def _sum(loads: Iterable[Load]) -> Load:
    return sum(loads, Load())


def read_backlog(db: Database) -> Backlog:
    """Take the snapshot."""
    with db.autocommit() as connection:
        shares = connection.execute(_SHARES, {"most": _MOST_ANNOUNCED}).all()
        rates = connection.execute(_RATES, {"known_for_s": KNOWN_FOR_S}).all()
        now = connection.execute(_NOW).one()
    return Backlog(
        shares=tuple(_tenant_backlog(row) for row in shares),
        rates={row.queue: Rate(row.jobs_per_s, row.tokens_per_s) for row in rates},
        paused=frozenset(now.paused),
        at=now.at,
    )


def _tenant_backlog(row: Row[Any]) -> TenantBacklog:
    announced = Load(row.announced_jobs, row.announced_tokens)
    return TenantBacklog(
        row.queue, row.tenant_id, row.class_rank, queued=Load(row.jobs, row.tokens), announced=announced
    )


def find_position(db: Database, backlog: Backlog, job: Job) -> QueuePosition | None:
    """Return the job's queue position; None if it is not queued, waits for another's answer or is too far back."""
    if job.state is not JobState.QUEUED or job.queue == UNSERVED_QUEUE:
        return None
    values = {"queue": job.queue, "id": job.id, "most": MAX_AHEAD}
    if job.announced_at is not None:
        ahead = _count(db, _AHEAD_OF_ANNOUNCED, values | {"announced_at": job.announced_at})
    else:
        line = {"class_rank": job.class_rank, "tenant_id": job.tenant_id, "priority": job.priority}
        deadline = {"deadline_at": job.deadline_at, "deadline_s": None}
        own = _count(db, _AHEAD_IN_LINE, values | line | deadline, job.tenant_id)
        if own.jobs >= MAX_AHEAD:
            return None
        ahead = backlog.ahead(job.queue, job.class_rank, job.tenant_id, own)
    wait_s = backlog.wait_s(job.queue, ahead)
    starts_at = None if wait_s is None else backlog.at + timedelta(seconds=min(wait_s, _LONGEST_S))
    return QueuePosition(position=ahead.jobs + 1, starts_at=starts_at)


def too_long_a_wait_s(db: Database, backlog: Backlog, job: NewJob) -> float | None:
    """Return how long the job would wait for its start, if that is longer than its deadline; otherwise None.

    None also while the rate is not known. Postgres is queried only if the whole queue takes longer than the deadline.
    """
    whole = backlog.wait_s(job.queue, backlog.queued(queue=job.queue))
    if whole is None or whole <= job.deadline_s:
        return None
    line = {"class_rank": job.class_rank, "tenant_id": job.tenant_id, "priority": job.priority, "deadline_at": None}
    values = {"queue": job.queue, "id": job.id, "deadline_s": job.deadline_s, "most": MAX_AHEAD}
    own = _count(db, _AHEAD_IN_LINE, values | line, job.tenant_id)
    wait_s = backlog.wait_s(job.queue, backlog.ahead(job.queue, job.class_rank, job.tenant_id, own))
    return wait_s if wait_s is not None and wait_s > job.deadline_s else None


# Read the shortest time, in milliseconds, of the tenant's last jobs of a queue that cost at least half as much, for as
# many tokens as a job has. A job with fewer is not scaled up: its time may be another's from the start on. They are
# looked for among its newest thousand successes, so that the cost has a bound.
_SHORTEST = text("""
SELECT min(milliseconds) AS milliseconds FROM (
    SELECT CAST(usage ->> 'compute_ms' AS float8) * :tokens / GREATEST(input_tokens, :tokens) AS milliseconds
    FROM (
        SELECT id, queue, epoch, usage, input_tokens FROM jobs
        WHERE tenant_id = :tenant_id AND state = 'succeeded' ORDER BY id DESC LIMIT 1000
    ) AS newest
    WHERE queue = :queue AND epoch = 1 AND 2 * input_tokens >= :tokens ORDER BY id DESC LIMIT 20
) AS last
""")


def least_run_s(db: Database, job: NewJob) -> float | None:
    """Return how long a job runs at least, by the shortest of its tenant's last ones; None if there are none.

    For tasks whose jobs take as long as they cost: in a batch the time of a job is that of its neighbours.
    """
    values = {"tenant_id": job.tenant_id, "queue": job.queue, "tokens": job.input_tokens}
    with db.autocommit(tenant_id=job.tenant_id) as connection:
        found = connection.execute(_SHORTEST, values).scalar_one()
    return None if found is None else float(found) / 1000


def _count(db: Database, statement: TextClause, values: Mapping[str, object], tenant_id: str | None = None) -> Load:
    with db.autocommit(tenant_id=tenant_id) as connection:
        return Load(*connection.execute(statement, dict(values)).one())


_RECENT_S = 1.0


# Count the running and the announced jobs of each tenant and class of some queues.
_IN_FLIGHT = text("""
SELECT queue, tenant_id, class_rank, count(*) FILTER (WHERE is_running) AS running, count(*) AS total
FROM (
    SELECT queue, tenant_id, class_rank, true AS is_running FROM queue_lines
    WHERE state = 'running' AND queue = ANY(CAST(:queues AS text[]))
    UNION ALL
    SELECT queue, tenant_id, class_rank, false FROM queue_lines
    WHERE queue = ANY(CAST(:queues AS text[])) AND state = 'queued' AND announced_at IS NOT NULL
) AS lines
GROUP BY queue, tenant_id, class_rank
""")

# Find the best class that waits in some queues.
_BEST_WAITING = text("""
SELECT asked.queue, (
    SELECT min(class_rank) FROM queue_lines AS line
    WHERE line.queue = asked.queue AND state = 'queued' AND announced_at IS NULL AND NOT is_suspect
) AS best_rank
FROM unnest(CAST(:queues AS text[])) AS asked(queue)
""")

# Read jobs as lane candidates.
_CANDIDATES = text("""
SELECT id, queue, tenant_id, class_rank FROM jobs WHERE id = ANY(CAST(:ids AS text[]))
""")


@dataclass(frozen=True, slots=True)
class LaneCandidate:
    """A job that is about to be announced."""

    job_id: str
    queue: str
    tenant_id: str
    class_rank: int


@dataclass(frozen=True, slots=True)
class InFlight:
    """A tenant's jobs of one class in a queue: the running ones, and the running and announced ones together."""

    tenant_id: str
    class_rank: int
    running: int
    total: int


class RecentMaximum:
    """The maximum of the running jobs of each queue, as observed in the last second. For one thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._most: dict[str, tuple[int, float]] = {}

    def running(self, queue: str, now: int) -> int:
        """Record the number of running jobs and return the recent maximum."""
        most, seen_at = self._most.get(queue, (0, 0.0))
        if now < most and self._clock() - seen_at < _RECENT_S:
            return most
        self._most[queue] = (now, self._clock())
        return now


def within_share(
    db: Database, candidates: Sequence[LaneCandidate], recent: RecentMaximum, *, are_announced: bool = False
) -> set[str]:
    """Return the ids of the jobs that may take the fast lane.

    ``are_announced``: the jobs are stored as announced, so the counts contain them.
    """
    queues = sorted({candidate.queue for candidate in candidates})
    found: dict[str, list[InFlight]] = {queue: [] for queue in queues}
    with db.autocommit() as autocommitting:
        connection = with_setting(autocommitting, BY_INDEX)
        for row in connection.execute(_IN_FLIGHT, {"queues": queues}):
            found[row.queue].append(InFlight(row.tenant_id, row.class_rank, row.running, row.total))
        running = {queue: recent.running(queue, sum(s.running for s in found[queue])) for queue in queues}
        busy = [queue for queue in queues if running[queue]]
        waiting = [*connection.execute(_BEST_WAITING, {"queues": busy})] if busy else []
    best = {row.queue: row.best_rank for row in waiting}
    ahead: set[str] = set()
    for queue in busy:
        ours = [candidate for candidate in candidates if candidate.queue == queue]
        ahead |= _ahead(ours, found[queue], running[queue], best[queue], are_counted=are_announced)
    return ahead


class _Shares:
    """The jobs under way of each tenant, of the class ``worst_rank`` and better ones."""

    def __init__(
        self, candidates: Sequence[LaneCandidate], shares: Sequence[InFlight], worst_rank: int, *, are_counted: bool
    ) -> None:
        self._worst_rank = worst_rank
        self._under_way = Counter[str]()
        for share in shares:
            if share.class_rank <= worst_rank:
                self._under_way[share.tenant_id] += share.total
        for candidate in candidates:
            if candidate.class_rank <= worst_rank:
                self._under_way[candidate.tenant_id] -= 1 if are_counted else 0
        self.num_tenants = len(self._under_way)

    def add(self, candidate: LaneCandidate) -> None:
        if candidate.class_rank <= self._worst_rank:
            self._under_way[candidate.tenant_id] += 1

    def fits(self, tenant_id: str, num_jobs: int) -> bool:
        """Return whether the tenant has at most an equal share of so many jobs."""
        return self._under_way[tenant_id] * self.num_tenants <= num_jobs


def _ahead(
    candidates: Sequence[LaneCandidate],
    shares: Sequence[InFlight],
    running: int,
    best_waiting: int | None,
    *,
    are_counted: bool,
) -> set[str]:
    """Decide for one queue, in the order of the candidates."""
    own = {candidate.class_rank for candidate in candidates}
    announced = {share.class_rank for share in shares if share.total > share.running}
    queued = announced if best_waiting is None else announced | {best_waiting}
    best, worst_announced = min(queued, default=max(own, default=0)), max(announced, default=0)
    worst = max(own | {share.class_rank for share in shares})
    of_all = _Shares(candidates, shares, worst, are_counted=are_counted)
    by_class = {rank: _Shares(candidates, shares, rank, are_counted=are_counted) for rank in own}
    ahead = set()
    for candidate in candidates:
        for one in (of_all, *by_class.values()):
            one.add(candidate)
        fits = of_all.num_tenants > 1 and of_all.fits(candidate.tenant_id, running)
        if candidate.class_rank < worst_announced:
            fits |= by_class[candidate.class_rank].fits(candidate.tenant_id, max(1, running * 3 // 4))
        if fits and candidate.class_rank <= best:
            ahead.add(candidate.job_id)
    return ahead


def read_candidates(db: Database, job_ids: Sequence[str]) -> list[LaneCandidate]:
    """Return the jobs as lane candidates, in the order of ``job_ids``."""
    with db.autocommit() as connection:
        rows = {row.id: LaneCandidate(*row) for row in connection.execute(_CANDIDATES, {"ids": list(job_ids)})}
    return [rows[job_id] for job_id in job_ids if job_id in rows]

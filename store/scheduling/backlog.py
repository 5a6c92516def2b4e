"""What is queued right now, as one small snapshot, and what follows from it: who is ahead, how long that takes.

Read from the counts that the triggers of ``jobs`` keep, so it costs as much for a million queued jobs as for ten; it
grows with the number of tenants that have jobs queued. Waits come from the measured rate and are None without one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, TextClause, text

from store.db.database import Database
from store.jobs.jobs import Job, NewJob
from store.payloads.job_payload import CLASS_RANKS
from store.scheduling.service_rate import KNOWN_FOR_S, Rate
from store.schema.job_states import JobState

MAX_AHEAD = 2_000
"""Positions further back in a tenant's own line are not counted out: counting reads every row in between."""

# More announced jobs than this can only be by a mistake in the settings; they are not all read.
_MOST_ANNOUNCED = 20_000

_LONGEST_S = 10 * 365 * 86_400.0


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
        """Return the part of it that is about ``most`` tokens."""
        return self if self.tokens <= most else Load(self.jobs * most // self.tokens, most)


@dataclass(frozen=True, slots=True)
class Share:
    """What one tenant has queued in one class of a queue. ``announced`` is the part that is in the ready window."""

    queue: str
    tenant_id: str
    class_rank: int
    queued: Load
    announced: Load

    @property
    def waiting(self) -> Load:
        """What waits in Postgres."""
        return self.queued - self.announced


@dataclass(frozen=True, slots=True)
class Place:
    """Where a queued job stands: 1 is next. ``starts_at`` is None while the rate is not known."""

    position: int
    starts_at: datetime | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """The snapshot. ``rates`` has the queues whose rate is known, ``paused`` those that are paused."""

    shares: tuple[Share, ...]
    rates: dict[str, Rate]
    paused: frozenset[str]
    at: datetime

    def shares_of(self, queue: str, tenant_id: str | None = None) -> list[Share]:
        """Return the shares of a queue, of everybody or of one tenant."""
        return [s for s in self.shares if s.queue == queue and tenant_id in (None, s.tenant_id)]

    def queued(self, *, queue: str | None = None, tenant_id: str | None = None) -> Load:
        """Return what is queued in all, or in one queue, or by one tenant."""
        return _sum(
            share.queued
            for share in self.shares
            if queue in (None, share.queue) and tenant_id in (None, share.tenant_id)
        )

    def ahead(self, queue: str, class_rank: int, tenant_id: str, own: Load) -> Load:
        """Return what is served before a waiting job that has ``own`` of its own tenant and class before it.

        That is the ready window, the better classes, and of its own class what fair order gives the other tenants
        meanwhile: about as many tokens each. The places that go to old jobs are left out.
        """
        found = self.shares_of(queue)
        window = _sum(share.announced for share in found)
        better = _sum(share.waiting for share in found if share.class_rank < class_rank)
        peers = (s for s in found if s.class_rank == class_rank and s.tenant_id != tenant_id)
        return window + better + own + _sum(peer.waiting.first_tokens(own.tokens) for peer in peers)

    def wait_s(self, queue: str, ahead: Load) -> float | None:
        """Return how long the workers need to start what is ahead; None if nobody knows."""
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


# What the dispatcher has not added up yet counts too, so the figures are exact whether it runs or not.
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

_RATES = text("""
SELECT queue, jobs_per_s, tokens_per_s FROM queue_rates
WHERE measured_at > now() - make_interval(secs => :known_for_s)
""")


_NOW = text("SELECT now() AS at, ARRAY(SELECT queue FROM queue_controls) AS paused")


def read_backlog(db: Database) -> Backlog:
    """Take the snapshot."""
    with db.autocommit() as connection:
        shares = connection.execute(_SHARES, {"most": _MOST_ANNOUNCED}).all()
        rates = connection.execute(_RATES, {"known_for_s": KNOWN_FOR_S}).all()
        now = connection.execute(_NOW).one()
    return Backlog(
        shares=tuple(_share(row) for row in shares),
        rates={row.queue: Rate(row.jobs_per_s, row.tokens_per_s) for row in rates},
        paused=frozenset(now.paused),
        at=now.at,
    )


def _share(row: Row[Any]) -> Share:
    announced = Load(row.announced_jobs, row.announced_tokens)
    return Share(row.queue, row.tenant_id, row.class_rank, queued=Load(row.jobs, row.tokens), announced=announced)


# All that is announced is ahead of what waits; among the announced the time decides.
_AHEAD_OF_ANNOUNCED = text("""
SELECT count(*) AS jobs, CAST(COALESCE(sum(cost), 0) AS bigint) AS tokens FROM (
    SELECT cost FROM queue_lines
    WHERE queue = :queue AND state = 'queued' AND (announced_at, id) < (:announced_at, :id)
    LIMIT :most
) AS ahead
""")

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


def find_place(db: Database, backlog: Backlog, job: Job) -> Place | None:
    """Return where the job stands; None if it is not queued or stands too far back to count."""
    if job.state is not JobState.QUEUED:
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
    return Place(position=ahead.jobs + 1, starts_at=starts_at)


def too_long_a_wait_s(db: Database, backlog: Backlog, job: NewJob) -> float | None:
    """Return how long the job would wait for its start, if that is longer than its deadline; None if it is not.

    None, too, where nobody knows. Postgres is asked only if the whole queue would take longer than the deadline.
    """
    whole = backlog.wait_s(job.queue, backlog.queued(queue=job.queue))
    if whole is None or whole <= job.deadline_s:
        return None
    rank = CLASS_RANKS[job.service_class]
    line = {"class_rank": rank, "tenant_id": job.tenant_id, "priority": job.priority, "deadline_at": None}
    values = {"queue": job.queue, "id": job.id, "deadline_s": job.deadline_s, "most": MAX_AHEAD}
    own = _count(db, _AHEAD_IN_LINE, values | line, job.tenant_id)
    wait_s = backlog.wait_s(job.queue, backlog.ahead(job.queue, rank, job.tenant_id, own))
    return wait_s if wait_s is not None and wait_s > job.deadline_s else None


def _count(db: Database, statement: TextClause, values: Mapping[str, object], tenant_id: str | None = None) -> Load:
    with db.autocommit(tenant_id=tenant_id) as connection:
        return Load(*connection.execute(statement, dict(values)).one())

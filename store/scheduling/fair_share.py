"""Fair share: the jobs that may take the fast lane, because their tenants have less in flight than an equal share.

The ready window is first in, first out. The other tenants would wait behind a tenant that fills it, however fair the
order is in which jobs enter it. So a job takes the fast lane while its tenant's running and announced jobs, including
this one, are not more than

    running jobs of the queue / tenants with jobs in flight

By this rule the jobs in the fast lane never use more than their share of the running jobs, and no tenant starves. With
more tenants than running jobs the lane is empty. A waiting job of a better class is never overtaken.

Jobs of the same length that started together end together, and for a moment none runs. A job that arrives then would
wait for a whole job. So the number of running jobs is the maximum of the last second.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import text

from headrace.store.db.database import Database, with_setting
from headrace.store.scheduling.dispatch_queries import BY_INDEX

_RECENT_S = 1.0


# Count the running and the announced jobs of each tenant of some queues.
_IN_FLIGHT = text("""
SELECT queue, tenant_id, count(*) FILTER (WHERE is_running) AS running, count(*) AS total,
    min(class_rank) FILTER (WHERE NOT is_running) AS best_rank
FROM (
    SELECT queue, tenant_id, class_rank, true AS is_running FROM queue_lines
    WHERE state = 'running' AND queue = ANY(CAST(:queues AS text[]))
    UNION ALL
    SELECT queue, tenant_id, class_rank, false FROM queue_lines
    WHERE queue = ANY(CAST(:queues AS text[])) AND state = 'queued' AND announced_at IS NOT NULL
) AS lines
GROUP BY queue, tenant_id
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
    """A tenant's jobs in a queue: the running ones, and the running and announced ones together."""

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
    found: dict[str, dict[str, InFlight]] = {queue: {} for queue in queues}
    ranks: dict[str, list[int]] = {queue: [] for queue in queues}
    with db.autocommit() as autocommitting:
        connection = with_setting(autocommitting, BY_INDEX)
        rows = [*connection.execute(_IN_FLIGHT, {"queues": queues})]
        for row in rows:
            found[row.queue][row.tenant_id] = InFlight(row.running, row.total)
        running = {queue: recent.running(queue, sum(s.running for s in found[queue].values())) for queue in queues}
        busy = [queue for queue in queues if running[queue]]
        waiting = [*connection.execute(_BEST_WAITING, {"queues": busy})] if busy else []
    for row in (*rows, *waiting):
        if row.best_rank is not None:
            ranks[row.queue].append(row.best_rank)
    ahead: set[str] = set()
    for queue in busy:
        ours = [candidate for candidate in candidates if candidate.queue == queue]
        ahead |= _ahead(ours, found[queue], running[queue], ranks[queue], are_counted=are_announced)
    return ahead


def _ahead(
    candidates: Sequence[LaneCandidate],
    shares: Mapping[str, InFlight],
    running: int,
    ranks: Collection[int],
    *,
    are_counted: bool,
) -> set[str]:
    """Decide for one queue, in the order of the candidates."""
    tenants = shares.keys() | {candidate.tenant_id for candidate in candidates}
    best = min(ranks, default=max((candidate.class_rank for candidate in candidates), default=0))
    under_way = Counter({tenant: share.total for tenant, share in shares.items()})
    if are_counted:
        under_way.subtract(candidate.tenant_id for candidate in candidates)
    ahead = set()
    for candidate in candidates:
        under_way[candidate.tenant_id] += 1
        fits = under_way[candidate.tenant_id] * len(tenants) <= running
        if len(tenants) > 1 and fits and candidate.class_rank <= best:
            ahead.add(candidate.job_id)
    return ahead


def read_candidates(db: Database, job_ids: Sequence[str]) -> list[LaneCandidate]:
    """Return the jobs as lane candidates, in the order of ``job_ids``."""
    with db.autocommit() as connection:
        rows = {row.id: LaneCandidate(*row) for row in connection.execute(_CANDIDATES, {"ids": list(job_ids)})}
    return [rows[job_id] for job_id in job_ids if job_id in rows]

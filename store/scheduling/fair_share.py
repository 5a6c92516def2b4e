"""Which hints may go ahead of the ready window: those of tenants that have less under way than their even share.

The window is a line. A tenant that fills it would let everybody else wait behind it, however fair the order is in which
jobs come into it. So a job goes ahead while its tenant's jobs that run or are announced, with it, are not more than

    running jobs of the queue / tenants that have any under way

By that count those who go ahead never hold more than their part of what runs, and who is behind keeps his: nobody is
shut out. Where tenants are more than running jobs nobody goes ahead. A better class that waits is never overtaken.

Jobs of one length that began together end together, and for a moment nothing runs: whoever comes just then would wait
for a whole job. So the running jobs of a queue are the most that ran at once lately.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import text

from store.db.database import Database
from store.db.row_security import after
from store.scheduling.dispatch_queries import BY_INDEX


@dataclass(frozen=True, slots=True)
class Entry:
    """A job that is about to be announced."""

    job_id: str
    queue: str
    tenant_id: str
    class_rank: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a tenant has under way in a queue: jobs that run, and those together with the announced ones."""

    running: int
    under_way: int


class Lately:
    """How many jobs of each queue ran at once, at most, while one looked in the last second; for one thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._most: dict[str, tuple[int, float]] = {}

    def running(self, queue: str, now: int) -> int:
        """Note how many run now, and return the most."""
        most, seen_at = self._most.get(queue, (0, 0.0))
        if now < most and self._clock() - seen_at < _LATELY_S:
            return most
        self._most[queue] = (now, self._clock())
        return now


_LATELY_S = 1.0

_UNDER_WAY = text("""
SELECT queue, tenant_id, count(*) FILTER (WHERE is_running) AS running, count(*) AS under_way,
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

_BEST_WAITING = text("""
SELECT asked.queue, (
    SELECT min(class_rank) FROM queue_lines AS line
    WHERE line.queue = asked.queue AND state = 'queued' AND announced_at IS NULL AND NOT is_suspect
) AS best_rank
FROM unnest(CAST(:queues AS text[])) AS asked(queue)
""")


def within_share(db: Database, entries: Sequence[Entry], lately: Lately, *, are_announced: bool = False) -> set[str]:
    """Return the ids of the jobs that may go ahead. ``are_announced``: they are counted among the announced ones."""
    queues = sorted({entry.queue for entry in entries})
    found: dict[str, dict[str, Share]] = {queue: {} for queue in queues}
    ranks: dict[str, list[int]] = {queue: [] for queue in queues}
    with db.autocommit() as autocommitting:
        connection = after(autocommitting, BY_INDEX)
        rows = [*connection.execute(_UNDER_WAY, {"queues": queues})]
        for row in rows:
            found[row.queue][row.tenant_id] = Share(row.running, row.under_way)
        running = {queue: lately.running(queue, sum(s.running for s in found[queue].values())) for queue in queues}
        busy = [queue for queue in queues if running[queue]]
        waiting = [*connection.execute(_BEST_WAITING, {"queues": busy})] if busy else []
    for row in (*rows, *waiting):
        if row.best_rank is not None:
            ranks[row.queue].append(row.best_rank)
    ahead: set[str] = set()
    for queue in busy:
        ours = [entry for entry in entries if entry.queue == queue]
        ahead |= _ahead(ours, found[queue], running[queue], ranks[queue], are_counted=are_announced)
    return ahead


def _ahead(
    entries: Sequence[Entry],
    shares: Mapping[str, Share],
    running: int,
    ranks: Collection[int],
    *,
    are_counted: bool,
) -> set[str]:
    """Decide for one queue, in the order of the entries."""
    tenants = shares.keys() | {entry.tenant_id for entry in entries}
    best = min(ranks, default=max((entry.class_rank for entry in entries), default=0))
    under_way = Counter({tenant: share.under_way for tenant, share in shares.items()})
    if are_counted:
        under_way.subtract(entry.tenant_id for entry in entries)
    ahead = set()
    for entry in entries:
        under_way[entry.tenant_id] += 1
        fits = under_way[entry.tenant_id] * len(tenants) <= running
        if len(tenants) > 1 and fits and entry.class_rank <= best:
            ahead.add(entry.job_id)
    return ahead


_ENTRIES = text("""
SELECT id, queue, tenant_id, class_rank FROM jobs WHERE id = ANY(CAST(:ids AS text[]))
""")


def read_entries(db: Database, job_ids: Sequence[str]) -> list[Entry]:
    """Return the jobs as entries, in the order of their ids' list."""
    with db.autocommit() as connection:
        rows = {row.id: Entry(*row) for row in connection.execute(_ENTRIES, {"ids": list(job_ids)})}
    return [rows[job_id] for job_id in job_ids if job_id in rows]

"""The oldest job and the earliest deadline of each queue and class, for the dispatcher's metrics.

They are found among the jobs that stand first in an index, so the cost does not depend on the number of queued jobs.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from headrace.store.db.database import Database, with_setting
from headrace.store.scheduling.dispatch_queries import BY_INDEX
from headrace.store.schema.job_states import UNSERVED_QUEUE

MOST_LOOKED_AT = 1_000
"""The oldest and the announced jobs of a queue, and the deadlines of all queues, that are looked at."""

# Read the oldest jobs, and with them those that are announced: where a million old jobs of a lower class wait, the
# oldest of a better class is among the announced ones.
_OLDEST = text("""
SELECT queue, class_rank, CAST(extract(epoch FROM now() - min(since)) AS float8) AS oldest_age_s
FROM (SELECT DISTINCT queue FROM queue_counts WHERE queue <> :unserved) AS queues CROSS JOIN LATERAL (
    (SELECT class_rank, GREATEST(created_at, start_after) AS since FROM jobs
        WHERE jobs.queue = queues.queue AND state = 'queued'
        ORDER BY created_at LIMIT :most)
    UNION ALL
    (SELECT class_rank, GREATEST(created_at, start_after) FROM jobs
        WHERE jobs.queue = queues.queue AND state = 'queued' AND announced_at IS NOT NULL
        ORDER BY announced_at LIMIT :most)
) AS first
GROUP BY queue, class_rank
""")

# Read the earliest deadlines of queued jobs.
_DEADLINES = text("""
SELECT queue, class_rank, min(deadline_at) AS earliest_deadline FROM (
    SELECT queue, class_rank, deadline_at, state FROM jobs
    WHERE state IN ('queued', 'running') AND deadline_at IS NOT NULL ORDER BY deadline_at LIMIT :most
) AS first
WHERE state = 'queued' AND queue <> :unserved GROUP BY queue, class_rank
""")


@dataclass(frozen=True, slots=True)
class QueueAge:
    """A class of a queue. ``earliest_deadline`` is None if no such job has one of the next deadlines of all queues."""

    queue: str
    class_rank: int
    oldest_age_s: float | None
    earliest_deadline: datetime | None


def read_queue_ages(db: Database, most: int = MOST_LOOKED_AT) -> list[QueueAge]:
    """Return the classes of queues that have queued jobs. Raises Unavailable."""
    values = {"most": most, "unserved": UNSERVED_QUEUE}
    with db.autocommit() as connection:
        rows = with_setting(connection, BY_INDEX).execute(_OLDEST, values).all()
        oldest = {(row.queue, row.class_rank): row.oldest_age_s for row in rows}
    with db.autocommit() as connection:
        rows = with_setting(connection, BY_INDEX).execute(_DEADLINES, values).all()
        deadlines = {(row.queue, row.class_rank): row.earliest_deadline for row in rows}
    return [QueueAge(*key, oldest.get(key), deadlines.get(key)) for key in sorted(oldest.keys() | deadlines.keys())]

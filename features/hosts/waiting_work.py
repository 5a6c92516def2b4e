"""The work that waits for each version that a host may serve. Jobs of an adapter count for its base."""

from dataclasses import dataclass, field

from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.db.presence import read_serving
from headrace.store.hosts.hosted_versions import HostedVersion
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.scheduling.queue_ages import read_queue_ages
from headrace.store.schema.job_states import UNSERVED_QUEUE

_MOST_LOOKED_AT = 100

# The queued jobs of each queue that is not paused, and the cost of the running ones.
_WORK = text("""
WITH counted AS (
    SELECT queue, class_rank, sum(jobs) AS jobs, sum(tokens) AS tokens FROM queue_counts
    WHERE queue <> :unserved GROUP BY queue, class_rank HAVING sum(jobs) > 0
), queued AS (
    SELECT queue, CAST(sum(GREATEST(tokens, jobs)) AS bigint) AS tokens, min(class_rank) AS class_rank FROM counted
    WHERE queue NOT IN (SELECT queue FROM queue_controls) GROUP BY queue
), running AS (
    SELECT queue, CAST(sum(GREATEST(cost, 1)) AS bigint) AS tokens FROM queue_lines
    WHERE state = 'running' GROUP BY queue
)
SELECT queue, COALESCE(queued.tokens, 0) AS tokens, queued.class_rank, COALESCE(running.tokens, 0) AS running
FROM queued FULL JOIN running USING (queue)
""")


@dataclass(frozen=True, slots=True)
class QueueWork:
    """The work of a queue: tokens of its queued and of its running jobs. A paused queue has no queued work.

    ``oldest_age_s`` is 0 if nothing is queued. ``deadline_in_s``: to the earliest deadline of a queued job, if known.
    """

    tokens: int = 0
    running_tokens: int = 0
    class_rank: int = CLASS_RANKS[ServiceClass.STANDARD]
    oldest_age_s: float = 0.0
    deadline_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class WaitingWork:
    """The work by queue, and the number of live workers of each queue, on all machines."""

    by_queue: dict[str, QueueWork] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)

    def of(self, version: HostedVersion) -> QueueWork:
        """Return the work of the version and its adapters together."""
        found = [self.by_queue[queue] for queue in version.queues if queue in self.by_queue]
        ranks = [one.class_rank for one in found if one.tokens]
        deadlines = [one.deadline_in_s for one in found if one.deadline_in_s is not None]
        return QueueWork(
            tokens=sum(one.tokens for one in found),
            running_tokens=sum(one.running_tokens for one in found),
            class_rank=min(ranks, default=CLASS_RANKS[ServiceClass.STANDARD]),
            oldest_age_s=max((one.oldest_age_s for one in found), default=0.0),
            deadline_in_s=min(deadlines, default=None),
        )


def read_waiting_work(db: Database) -> WaitingWork:
    """Return the work that waits and runs now. Raises Unavailable."""
    with db.autocommit() as connection:
        rows = connection.execute(_WORK, {"unserved": UNSERVED_QUEUE}).all()
        now = connection.execute(text("SELECT now()")).scalar_one()
    is_queued = any(row.tokens for row in rows)
    ages = read_queue_ages(db, _MOST_LOOKED_AT) if is_queued else []
    oldest: dict[str, float] = {}
    deadlines: dict[str, float] = {}
    for age in ages:
        oldest[age.queue] = max(oldest.get(age.queue, 0.0), age.oldest_age_s or 0.0)
        if age.earliest_deadline is not None:
            left_s = (age.earliest_deadline - now).total_seconds()
            deadlines[age.queue] = min(deadlines.get(age.queue, left_s), left_s)
    work = {
        row.queue: QueueWork(
            row.tokens, row.running, row.class_rank or 0, oldest.get(row.queue, 0.0), deadlines.get(row.queue)
        )
        for row in rows
    }
    return WaitingWork(work, {queue: serving.workers for queue, serving in read_serving(db).items()})

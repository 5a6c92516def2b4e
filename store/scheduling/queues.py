"""Queues for the API and the operator: counts, rates, pause and resume.

Triggers on ``jobs`` keep the counts: each statement that moves jobs in or out of a queue inserts rows
of ``queue_changes``. ``fold`` adds those rows to ``queue_totals``. Two processes may fold at once: the statement that
deletes a row adds it. The order within a queue is ``store.scheduling.dispatch_queries``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.db.presence import Serving, read_serving
from headrace.store.errors import NotFound
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.scheduling.backlog import Backlog, Load
from headrace.store.scheduling.scale_decisions import StoredDecision, read_decisions
from headrace.store.scheduling.service_rate import Interval, Rate
from headrace.store.schema.job_states import UNSERVED_QUEUE

# Move changes into the totals; return what happened to each queue. ``num_before`` is read from the snapshot, before
# this statement's changes. Rows are added in the order of their key, so that two concurrent folds cannot deadlock.
_FOLD = text("""
WITH taken AS (
    DELETE FROM queue_changes WHERE id = ANY (ARRAY(
        SELECT id FROM queue_changes ORDER BY id LIMIT :most FOR UPDATE SKIP LOCKED
    )) RETURNING queue, tenant_id, class_rank, jobs, tokens, started_jobs, started_tokens
), summed AS (
    SELECT queue, tenant_id, class_rank, sum(jobs) AS jobs, sum(tokens) AS tokens
    FROM taken GROUP BY queue, tenant_id, class_rank
), added AS (
    INSERT INTO queue_totals (queue, tenant_id, class_rank, jobs, tokens)
    SELECT queue, tenant_id, class_rank, jobs, tokens FROM summed ORDER BY queue, tenant_id, class_rank
    ON CONFLICT (queue, tenant_id, class_rank) DO UPDATE SET
        jobs = queue_totals.jobs + EXCLUDED.jobs, tokens = queue_totals.tokens + EXCLUDED.tokens
), moved AS (
    SELECT queue, sum(GREATEST(-jobs, 0)) AS num_left, sum(started_jobs) AS started_jobs,
        sum(started_tokens) AS started_tokens
    FROM taken GROUP BY queue
)
SELECT queue, CAST(extract(epoch FROM clock_timestamp()) AS float8) AS at,
    CAST(COALESCE((SELECT sum(jobs) FROM queue_totals WHERE queue_totals.queue = moved.queue), 0) AS bigint)
        AS num_before,
    CAST(num_left AS bigint) AS num_left, CAST(started_jobs AS bigint) AS started_jobs,
    CAST(started_tokens AS bigint) AS started_tokens
FROM moved
""")

# Delete the totals of empty queues.
_FORGET_EMPTY = text("DELETE FROM queue_totals WHERE jobs = 0 AND tokens = 0")

# Store measured service rates.
_RECORD_RATES = text("""
INSERT INTO queue_rates (queue, jobs_per_s, tokens_per_s, measured_at)
SELECT queue, jobs_per_s, tokens_per_s, now()
FROM unnest(CAST(:queues AS text[]), CAST(:jobs AS float8[]), CAST(:tokens AS float8[]))
    AS r(queue, jobs_per_s, tokens_per_s)
ORDER BY queue
ON CONFLICT (queue) DO UPDATE SET
    jobs_per_s = EXCLUDED.jobs_per_s, tokens_per_s = EXCLUDED.tokens_per_s, measured_at = EXCLUDED.measured_at
""")

# List queues. A queue exists while its model version is not retired, while it has jobs, and while it is paused.
_QUEUES = text("""
WITH names AS (
    SELECT model || '@' || version AS queue FROM model_versions WHERE retired_at IS NULL
    UNION SELECT queue FROM queue_counts WHERE jobs <> 0 AND queue <> :unserved
    UNION SELECT queue FROM queue_controls
), running AS (
    SELECT queue, count(*) AS jobs FROM queue_lines
    WHERE state = 'running' AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id) GROUP BY queue
)
SELECT queue, paused_at, paused_by, COALESCE(running.jobs, 0) AS running,
    (SELECT CAST(extract(epoch FROM now() - min(oldest.created_at)) AS float8) FROM (
        SELECT created_at, tenant_id FROM queue_lines AS line WHERE line.queue = names.queue AND state = 'queued'
        ORDER BY created_at LIMIT :most
    ) AS oldest WHERE CAST(:tenant_id AS text) IS NULL OR oldest.tenant_id = :tenant_id) AS oldest_age_s
FROM names LEFT JOIN queue_controls USING (queue) LEFT JOIN running USING (queue)
WHERE CAST(:name AS text) IS NULL OR queue = :name
ORDER BY queue
""")

# Find out whether a queue exists.
_EXISTS = text("""
SELECT EXISTS (SELECT FROM model_versions WHERE model || '@' || version = :queue)
    OR EXISTS (SELECT FROM queue_counts WHERE queue = :queue AND jobs <> 0 AND queue <> :unserved)
    OR EXISTS (SELECT FROM queue_controls WHERE queue = :queue)
""")

# Pause a queue.
_PAUSE = text("""
INSERT INTO queue_controls (queue, paused_by) VALUES (:queue, :actor) ON CONFLICT (queue) DO NOTHING RETURNING queue
""")

# Resume a queue.
_RESUME = text("DELETE FROM queue_controls WHERE queue = :queue RETURNING queue")

# Make the announced jobs of a queue wait again: workers dropped the hints of the paused queue.
_LET_WAIT = text("""
WITH hinted AS (
    SELECT id FROM queue_lines WHERE queue = :queue AND state = 'queued' AND announced_at IS NOT NULL
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE queue_lines SET announced_at = NULL FROM hinted WHERE queue_lines.id = hinted.id
""")


def fold(db: Database, most: int = 10_000) -> dict[str, Interval]:
    """Add the changes to the totals; return the Interval of each queue that changed."""
    with db.autocommit() as connection:
        rows = [dict(row) for row in connection.execute(_FOLD, {"most": most}).mappings()]
    return {row.pop("queue"): Interval(**row) for row in rows}


def forget_empty(db: Database) -> int:
    """Delete totals that are zero; return the number of rows."""
    with db.autocommit() as connection:
        return connection.execute(_FORGET_EMPTY).rowcount


def record_rates(db: Database, rates: Mapping[str, Rate]) -> None:
    """Store the service rates that were measured just now."""
    if rates:
        values = {
            "queues": list(rates),
            "jobs": [rate.jobs_per_s for rate in rates.values()],
            "tokens": [rate.tokens_per_s for rate in rates.values()],
        }
        with db.autocommit() as connection:
            connection.execute(_RECORD_RATES, values)


@dataclass(frozen=True, slots=True)
class QueueView:
    """A queue, or one tenant's share of it.

    ``oldest_age_s`` is None if nothing is queued, or if the tenant's oldest job was not found quickly. ``workers``: the
    live workers of the whole queue. ``scaling``: how many it should have, if that is decided.
    """

    name: str
    workers: int
    running: int
    by_class: dict[ServiceClass, Load]
    announced: int
    oldest_age_s: float | None
    paused_at: datetime | None
    paused_by: str | None
    rate: Rate | None
    scaling: StoredDecision | None = None

    @property
    def queued(self) -> Load:
        """All classes together."""
        return sum(self.by_class.values(), Load())


# A tenant's oldest job is searched among so many of the oldest jobs of the queue.
_MOST_LOOKED_AT = 1_000


def view_queues(db: Database, backlog: Backlog, *, tenant_id: str | None, name: str | None = None) -> list[QueueView]:
    """Return every queue, or the one with that name, sorted by name; with ``tenant_id`` only that tenant's share.

    Raises NotFound if there is no queue with that name.
    """
    values = {"tenant_id": tenant_id, "name": name, "most": 1 if tenant_id is None else _MOST_LOOKED_AT}
    values["unserved"] = UNSERVED_QUEUE
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_QUEUES, values).all()
    if name is not None and not rows:
        raise _no_such_queue(name)
    serving, scaling = read_serving(db), read_decisions(db)
    return [
        QueueView(
            name=row.queue,
            workers=serving.get(row.queue, Serving()).workers,
            running=row.running,
            by_class=_by_class(backlog, row.queue, tenant_id),
            announced=sum(s.announced.jobs for s in backlog.shares_of(row.queue, tenant_id)),
            oldest_age_s=row.oldest_age_s,
            paused_at=row.paused_at,
            paused_by=row.paused_by,
            rate=backlog.rates.get(row.queue),
            scaling=scaling.get(row.queue),
        )
        for row in rows
    ]


def _by_class(backlog: Backlog, queue: str, tenant_id: str | None) -> dict[ServiceClass, Load]:
    shares = backlog.shares_of(queue, tenant_id)
    return {
        service_class: sum((share.queued for share in shares if share.class_rank == rank), Load())
        for service_class, rank in CLASS_RANKS.items()
    }


def pause(db: Database, tenant_id: str, queue: str, *, actor: str) -> None:
    """Start no more jobs of the queue. Running jobs go on, and jobs are still accepted.

    Pausing a paused queue changes nothing. Raises NotFound if there is no such queue.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        if not connection.execute(_EXISTS, {"queue": queue, "unserved": UNSERVED_QUEUE}).scalar_one():
            raise _no_such_queue(queue)
        if connection.execute(_PAUSE, {"queue": queue, "actor": actor}).scalar_one_or_none() is not None:
            record(connection, tenant_id, actor, "queue.paused", queue, {})


def resume(db: Database, tenant_id: str, queue: str, *, actor: str) -> None:
    """Start jobs of the queue again. Raises NotFound if there is no such queue."""
    with db.begin(tenant_id=tenant_id) as connection:
        if not connection.execute(_EXISTS, {"queue": queue, "unserved": UNSERVED_QUEUE}).scalar_one():
            raise _no_such_queue(queue)
        if connection.execute(_RESUME, {"queue": queue}).scalar_one_or_none() is not None:
            connection.execute(_LET_WAIT, {"queue": queue})
            record(connection, tenant_id, actor, "queue.resumed", queue, {})


def _no_such_queue(name: str) -> NotFound:
    return NotFound(f"no queue {name[:200]!r}: it is named for its model version, such as smollm2@1")

"""What a model host reads: the versions that a worker may serve, with their needs, and the work that waits for each.

The jobs of an adapter count for its base, because the workers of the base run them.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text

from headrace.store.db.database import Database
from headrace.store.db.presence import read_serving
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.registry.engine_spec import EngineSpec
from headrace.store.registry.verification_report import VerificationReport
from headrace.store.scheduling.queue_ages import read_queue_ages
from headrace.store.schema.job_states import UNSERVED_QUEUE

_MOST_LOOKED_AT = 100

PROCESS_START_S = 4.0
"""From the start of a worker process to the begin of its load: mostly imports. An estimate."""

# Versions without those that are rejected; adapters too, because their jobs count for their base.
_VERSIONS = text("""
SELECT model, version, model || '@' || version AS queue, source, dtype, engine, verification, created_at,
    state = 'registered' AND retired_at IS NULL AS is_unverified, base_model || '@' || base_version AS base
FROM model_versions WHERE state <> 'rejected' ORDER BY model, version
""")

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
class HostedVersion:
    """A version that a worker may serve. ``adapters``: queues of its LoRA adapters, which its worker serves too.

    ``memory_bytes`` and ``load_s``: what its verification measured; None before. ``source``: its folder, or "".
    ``is_unverified``: its first worker verifies it.
    """

    model: str
    version: int
    queue: str
    source: str
    dtype: str
    engine: EngineSpec | None
    memory_bytes: int | None
    load_s: float | None
    is_unverified: bool
    created_at: datetime
    adapters: tuple[str, ...] = ()

    @property
    def start_s(self) -> float | None:
        """Seconds from the start of a worker until it takes jobs, by what its verification measured; None before."""
        return None if self.load_s is None else PROCESS_START_S + self.load_s

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that its worker serves."""
        return (self.queue, *self.adapters)


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


def read_hosted_versions(db: Database) -> list[HostedVersion]:
    """Return every version that is not rejected and no adapter, sorted by name. Raises Unavailable."""
    with db.autocommit() as connection:
        rows = connection.execute(_VERSIONS).all()
    adapters: dict[str, list[str]] = {}
    for row in rows:
        if row.base is not None:
            adapters.setdefault(row.base, []).append(row.queue)
    return [_hosted(row, tuple(adapters.get(row.queue, ()))) for row in rows if row.base is None]


def _hosted(row: Row[Any], adapters: tuple[str, ...]) -> HostedVersion:
    report = None if row.verification is None else VerificationReport.model_validate(row.verification)
    return HostedVersion(
        model=row.model,
        version=row.version,
        queue=row.queue,
        source=row.source,
        dtype=row.dtype,
        engine=None if row.engine is None else EngineSpec.model_validate(row.engine),
        memory_bytes=report.memory_bytes if report else None,
        load_s=report.load_s if report else None,
        is_unverified=row.is_unverified,
        created_at=row.created_at,
        adapters=adapters,
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

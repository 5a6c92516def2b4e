"""The ended jobs of a queue with their times and tokens, for a forecast (`headrace plan`): all tenants, no contents."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from headrace.store.db.database import Database

MOST_JOBS = 50_000

# Read the newest jobs that were accepted in the time, each with its last attempt. A job that never started has none.
_ENDED = text("""
SELECT jobs.tenant_id, jobs.class_rank, jobs.created_at, jobs.deadline_at, last.started_at,
    last.ended_at, last.worker, jobs.state = 'succeeded' AND last.epoch = 1 AS is_typical,
    GREATEST(jobs.input_tokens, 1) AS input_tokens, GREATEST(jobs.cost_tokens, jobs.input_tokens) AS cost_tokens,
    CAST(COALESCE(jobs.usage ->> 'output_tokens', '0') AS int) AS output_tokens,
    CAST(jobs.usage ->> 'first_token_ms' AS float8) / 1000 AS first_token_s
FROM jobs LEFT JOIN LATERAL (
    SELECT started_at, ended_at, worker, epoch FROM attempts
    WHERE attempts.job_id = jobs.id ORDER BY epoch DESC LIMIT 1
) AS last ON true
WHERE jobs.queue = :queue AND jobs.created_at > now() - make_interval(secs => :within_s)
    AND jobs.completed_at IS NOT NULL AND jobs.usage IS NOT NULL
ORDER BY jobs.created_at DESC LIMIT :most
""")


@dataclass(frozen=True, slots=True)
class EndedJob:
    """An ended job. ``started_at``, ``ended_at`` and ``worker`` are those of its last attempt.

    ``first_token_s`` is counted from its acceptance, None without one. ``is_typical``: it succeeded in its first
    attempt, so its times say how fast a worker is.
    """

    tenant_id: str
    class_rank: int
    created_at: datetime
    deadline_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    worker: str | None
    is_typical: bool
    input_tokens: int
    cost_tokens: int
    output_tokens: int
    first_token_s: float | None


def read_ended(db: Database, queue: str, within_s: float, most: int = MOST_JOBS) -> list[EndedJob]:
    """Return the newest jobs of the queue that were accepted in the last seconds and have ended, oldest first."""
    values = {"queue": queue, "within_s": float(within_s), "most": most}
    with db.autocommit() as connection:
        return [EndedJob(**row) for row in connection.execute(_ENDED, values).mappings()][::-1]

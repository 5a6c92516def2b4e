"""Notes in flows that a worker has claimed one of their steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from store.db.database import Database
from store.jobs.flow_settling import FLOW_RUNS

# A locked flow is skipped: whoever holds it settles it, or the end of the step does.
_NOTE = text(f"""
WITH claimed AS (
    SELECT * FROM unnest(
        CAST(:flows AS text[]), CAST(:steps AS text[]), CAST(:names AS text[]), CAST(:attempts AS int[])
    ) AS r(flow_id, step_id, name, attempt)
), waiting AS (
    SELECT id FROM jobs WHERE id = ANY(CAST(:flows AS text[])) AND state = 'queued' FOR NO KEY UPDATE SKIP LOCKED
), begun AS (
    UPDATE jobs SET {FLOW_RUNS}, started_at = COALESCE(started_at, clock_timestamp())
    FROM waiting WHERE jobs.id = waiting.id AND jobs.state = 'queued'
)
INSERT INTO job_events (job_id, kind, epoch, detail)
SELECT flow_id, 'step_started', 0, jsonb_build_object('step', name, 'job', step_id, 'attempt', attempt)
FROM claimed WHERE EXISTS (SELECT FROM jobs WHERE jobs.id = flow_id)
""")


@dataclass(frozen=True, slots=True)
class BegunStep:
    """An attempt of a step that has begun."""

    flow_id: str
    step_id: str
    name: str
    attempt: int


def note_begun(db: Database, begun: Sequence[BegunStep]) -> None:
    """Let these flows run, and note the attempts in their timelines."""
    values = {
        "flows": [step.flow_id for step in begun],
        "steps": [step.step_id for step in begun],
        "names": [step.name for step in begun],
        "attempts": [step.attempt for step in begun],
    }
    with db.autocommit() as connection:
        connection.execute(_NOTE, values)

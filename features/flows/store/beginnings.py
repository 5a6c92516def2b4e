"""Notes in flows that a worker has claimed one of their steps."""

import time
from collections.abc import Sequence

from sqlalchemy import text

from headrace.features.flows.store.settling import FLOW_RUNS
from headrace.store.db.database import Database
from headrace.store.jobs.parent_part import BegunStep

_TRIES = 3
_AGAIN_S = 0.02

# Events of steps are written with their flow locked, so that readers see them in one order. A locked flow is left out.
_NOTE = text(f"""
WITH claimed AS (
    SELECT * FROM unnest(
        CAST(:flows AS text[]), CAST(:steps AS text[]), CAST(:names AS text[]), CAST(:attempts AS int[])
    ) AS r(flow_id, step_id, name, attempt)
), locked AS (
    SELECT id, state, answer_id FROM jobs
    WHERE id = ANY(CAST(:flows AS text[])) AND state IN ('queued', 'running') FOR NO KEY UPDATE SKIP LOCKED
), begun AS (
    UPDATE jobs SET {FLOW_RUNS}, started_at = COALESCE(started_at, clock_timestamp())
    FROM locked WHERE jobs.id = locked.id AND jobs.state = 'queued'
), noted AS (
    INSERT INTO job_events (job_id, kind, epoch, detail)
    SELECT flow_id, 'step_started', 0, jsonb_build_object('step', name, 'job', step_id, 'attempt', attempt)
    FROM claimed JOIN locked ON locked.id = flow_id
)
SELECT id, answer_id FROM locked
""")


def note_begun(db: Database, begun: Sequence[BegunStep]) -> list[str]:
    """Let these flows run, and note the attempts in their timelines; return the steps with the flows' answers.

    A flow that stays locked is left out: the end of the step notes it.
    """
    answers: list[str] = []
    for number in range(_TRIES):
        if number:
            time.sleep(_AGAIN_S)
        values = {
            "flows": [step.parent_id for step in begun],
            "steps": [step.step_id for step in begun],
            "names": [step.name for step in begun],
            "attempts": [step.attempt for step in begun],
        }
        with db.autocommit() as connection:
            noted = {row.id: row.answer_id for row in connection.execute(_NOTE, values)}
        answers += noted.values()
        begun = [step for step in begun if step.parent_id not in noted]
        if not begun:
            break
    return answers

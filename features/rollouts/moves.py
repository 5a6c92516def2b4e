"""Moves the queued jobs of a candidate that was rolled back to the stable version.

Nothing is computed here: acceptance has prepared the job for the stable version too, and has stored that payload beside
the job where it differs (``job_fallbacks``). An attempt of the stable version never continues one of the candidate.
"""

from sqlalchemy import text

from headrace.features.rollouts.rollouts import Rollout
from headrace.store.db.database import Database
from headrace.store.failpoints import failpoint
from headrace.store.registry.models import queue_name

# Move jobs. They may wait again for a hint, and nothing that happened on the candidate counts against them. The output
# of a lost attempt is not continued: what it had emitted is another version's.
_MOVE = text("""
WITH found AS (
    SELECT id FROM jobs
    WHERE rollout_id = :rollout AND state = 'queued' AND model_version = :candidate AND queue = :candidate_queue
    ORDER BY id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
), moved AS (
    UPDATE jobs SET
        model_version = :stable, queue = :stable_queue, announced_at = NULL,
        payload = COALESCE(fallback.payload, jobs.payload),
        input_tokens = COALESCE(fallback.input_tokens, jobs.input_tokens),
        cost_tokens = COALESCE(fallback.cost_tokens, jobs.cost_tokens),
        attempt = 0, crashes = 0, is_suspect = false, restarts_after = epoch
    FROM found LEFT JOIN job_fallbacks AS fallback ON fallback.job_id = found.id
    WHERE jobs.id = found.id AND jobs.state = 'queued'
    RETURNING jobs.id, jobs.epoch
), used AS (
    DELETE FROM job_fallbacks USING moved WHERE job_fallbacks.job_id = moved.id
), dropped AS (
    DELETE FROM job_checkpoints USING moved WHERE job_checkpoints.job_id = moved.id
), events AS (
    INSERT INTO job_events (job_id, kind, epoch, detail)
    SELECT id, 'moved', epoch, jsonb_build_object(
        'from_version', CAST(:candidate AS int), 'version', CAST(:stable AS int), 'rollout', CAST(:rollout AS text))
    FROM moved
)
SELECT count(*) FROM moved
""")


def move_queued(db: Database, rollout: Rollout, limit: int) -> int:
    """Move at most ``limit`` queued jobs of the candidate in one transaction; return their number.

    Locked jobs are left for the next call. Jobs that come later are moved by a later call: an API process that has not
    heard of the end may still accept one, and a lost attempt gives its job back.
    """
    values = {
        "rollout": rollout.id,
        "candidate": rollout.candidate_version,
        "stable": rollout.stable_version,
        "candidate_queue": queue_name(rollout.model, rollout.candidate_version),
        "stable_queue": queue_name(rollout.model, rollout.stable_version),
        "limit": limit,
    }
    with db.begin() as connection:
        num_moved = int(connection.execute(_MOVE, values).scalar_one())
        if num_moved:
            failpoint("rollout.moving")
    return num_moved

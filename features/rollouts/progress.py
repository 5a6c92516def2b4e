"""Reads where an active rollout stands: the time, the candidate's jobs in this step, and whether a worker serves it."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from headrace.features.rollouts.rollouts import Rollout, RolloutKind
from headrace.store.db.presence import GONE_AFTER_S
from headrace.store.registry.models import queue_name

# Counted only as far as the step needs it. A pipeline has steps of several models, so no one queue serves it.
_READ = """
SELECT
    clock_timestamp() AS now,
    (SELECT count(*) FROM (
        SELECT FROM jobs
        WHERE rollout_id = :rollout AND {column} = :candidate AND completed_at >= :since
        LIMIT :min_jobs
    ) AS ended) AS num_in_step,
    :is_pipeline OR EXISTS (
        SELECT FROM worker_processes
        WHERE queue = :queue AND seen_at > now() - make_interval(secs => :gone_after_s)
    ) AS is_served
"""
# The newest jobs of the candidate, and the stable version's of the same time. Both are bounded.
_SHARE = """
WITH candidate AS (
    SELECT created_at FROM jobs
    WHERE rollout_id = :rollout AND {column} = :candidate AND created_at >= :since
    ORDER BY created_at DESC LIMIT 200
), stable AS (
    SELECT FROM jobs
    WHERE rollout_id = :rollout AND {column} = :stable
        AND created_at >= (SELECT CASE WHEN count(*) < 200 THEN :since ELSE min(created_at) END FROM candidate)
    LIMIT 20000
)
SELECT (SELECT count(*) FROM candidate) AS candidate, (SELECT count(*) FROM stable) AS stable
"""
_SHARES = {kind: text(_SHARE.format(column=kind.column)) for kind in RolloutKind}
_STATEMENTS = {kind: text(_READ.format(column=kind.column)) for kind in RolloutKind}


class Progress(NamedTuple):
    """The database's time, the candidate's ended jobs in this step (up to ``min_jobs``), and if a worker serves it."""

    now: datetime
    num_in_step: int
    is_served: bool


def read_job_percent(connection: Connection, rollout: Rollout) -> float | None:
    """Return the candidate's share of the newest jobs of this step, in percent; None without jobs.

    It differs from the percentage of the step where few sticky keys bring much of the load.
    """
    values = {
        "rollout": rollout.id,
        "candidate": rollout.candidate_version,
        "stable": rollout.stable_version,
        "since": rollout.step_since,
    }
    candidate, stable = connection.execute(_SHARES[rollout.kind], values).one()
    return 100 * candidate / (candidate + stable) if candidate + stable else None


def read_progress(connection: Connection, rollout: Rollout) -> Progress:
    """Return where the rollout stands."""
    values = {
        "rollout": rollout.id,
        "candidate": rollout.candidate_version,
        "since": rollout.step_since,
        "min_jobs": rollout.steps[rollout.current_step].min_jobs,
        "queue": queue_name(rollout.model, rollout.candidate_version),
        "gone_after_s": GONE_AFTER_S,
        "is_pipeline": rollout.kind is RolloutKind.PIPELINE,
    }
    return Progress(*connection.execute(_STATEMENTS[rollout.kind], values).one())

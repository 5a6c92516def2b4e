"""Reads where an active rollout stands: the time, the candidate's jobs in this step, and whether a worker serves it."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from store.db.presence import GONE_AFTER_S
from store.registry.models import queue_name
from store.rollouts.rollouts import Rollout, RolloutKind

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
_STATEMENTS = {kind: text(_READ.format(column=kind.column)) for kind in RolloutKind}


class Progress(NamedTuple):
    """The database's time, the candidate's ended jobs in this step (up to ``min_jobs``), and if a worker serves it."""

    now: datetime
    num_in_step: int
    is_served: bool


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

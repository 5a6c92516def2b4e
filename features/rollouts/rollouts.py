"""A rollout: the steps by which an alias goes from its stable version to a candidate, and where it stands."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, text

from headrace.store.db.database import Database
from headrace.store.errors import NotFound


class RolloutMode(StrEnum):
    """``canary``: a share of the alias's jobs goes to the candidate. ``shadow``: it gets copies alone."""

    CANARY = "canary"
    SHADOW = "shadow"


class RolloutKind(StrEnum):
    """What has the versions: a model, or a pipeline of a tenant, which jobs have by the number in ``column``."""

    MODEL = "model"
    PIPELINE = "pipeline"

    @property
    def column(self) -> str:
        """The column of ``jobs`` with the version that a job got."""
        return "model_version" if self is RolloutKind.MODEL else "pipeline_version"


class StickyKey(StrEnum):
    """What of a job keeps it on one version: all jobs with the same value go to the same one.

    ``job``: nothing but the conversation; a job without one goes to a side of its own.
    """

    JOB = "job"
    TENANT = "tenant"
    USER = "user"
    CONVERSATION = "conversation"


class RolloutState(StrEnum):
    """``paused``: the percentage stays, and the judge still looks. The last three are the ends."""

    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ABORTED = "aborted"
    ROLLED_BACK = "rolled_back"

    @property
    def is_active(self) -> bool:
        """True while the rollout divides the jobs of its alias."""
        return self in {RolloutState.RUNNING, RolloutState.PAUSED}


@dataclass(frozen=True, slots=True)
class Step:
    """A share of the sticky keys, in percent, and what must be reached before the next step.

    The step holds for ``hold_s`` seconds, and until ``min_jobs`` jobs of the candidate have ended since it began.
    """

    percent: float
    hold_s: float = 0.0
    min_jobs: int = 0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout. Its jobs are those with its id in ``jobs.rollout_id``, of both versions.

    ``model``: a model's name; of a rollout of a pipeline the pipeline's id.

    ``bounds``: what the judge allows (``features.rollouts.judge.Bounds``). ``evidence``: the judge's last verdict and a
    bounded history. ``revision`` is raised by each change of state or step.
    """

    id: str
    model: str
    kind: RolloutKind
    alias: str
    stable_version: int
    candidate_version: int
    mode: RolloutMode
    sticky_key: StickyKey
    steps: tuple[Step, ...]
    bounds: dict[str, Any]
    state: RolloutState
    current_step: int
    step_since: datetime
    started_at: datetime
    started_by: str
    paused_at: datetime | None
    ended_at: datetime | None
    reason: str | None
    evidence: dict[str, Any]
    revision: int

    @property
    def percent(self) -> float:
        """The share of the sticky keys that goes to the candidate now, in percent."""
        if self.state is RolloutState.PROMOTED:
            return 100.0
        return self.steps[self.current_step].percent if self.state.is_active else 0.0


# Only known columns: a later release may add columns.
_FIELDS = tuple(one.name for one in fields(Rollout))

COLUMNS = ", ".join(_FIELDS)
_PLAIN = ", ".join(name for name in _FIELDS if name != "evidence")
_GET = text(f"SELECT {COLUMNS} FROM rollouts WHERE id = :id")

# Without the evidence, which may be long: the API reads this every second.
_ACTIVE = text(f"SELECT {_PLAIN} FROM rollouts WHERE state IN ('running', 'paused')")

_OF_ALIAS = text(f"""
SELECT {_PLAIN} FROM rollouts WHERE model = :model AND alias = :alias AND state IN ('running', 'paused')
""")

# Active rollouts, and those whose queued jobs are still to be moved back. Late jobs come within seconds, so a week is
# ample: it also covers a lost attempt of a job with a long deadline.
_UNDER_WAY = text(f"""
SELECT {_PLAIN}, CASE WHEN ended_at IS NULL THEN evidence ELSE '{{}}' END AS evidence FROM rollouts
WHERE state IN ('running', 'paused') OR (state IN ('aborted', 'rolled_back') AND ended_at > now() - interval '7 days')
ORDER BY id
""")

_LIST = text(f"""
SELECT {_PLAIN} FROM rollouts
WHERE kind = :kind AND (CAST(:model AS text) IS NULL OR model = :model)
    AND (NOT :is_active OR state IN ('running', 'paused'))
ORDER BY id DESC LIMIT :limit
""")


def active_rollouts(db: Database) -> dict[tuple[str, str], Rollout]:
    """Return the rollouts that run or are paused, by model and alias. They come without their evidence."""
    with db.autocommit() as connection:
        found = [read_rollout({**row, "evidence": {}}) for row in connection.execute(_ACTIVE).mappings()]
    return {(rollout.model, rollout.alias): rollout for rollout in found}


def active_rollout(db: Database, model: str, alias: str) -> Rollout | None:
    """Return the rollout that divides the jobs of an alias, without its evidence; None if there is none."""
    with db.autocommit() as connection:
        row = connection.execute(_OF_ALIAS, {"model": model, "alias": alias}).mappings().one_or_none()
    return None if row is None else read_rollout({**row, "evidence": {}})


def rollouts_under_way(db: Database) -> list[Rollout]:
    """Return the active rollouts, and the ended ones whose candidate may still have queued jobs, the oldest first."""
    with db.autocommit() as connection:
        return [read_rollout(row) for row in connection.execute(_UNDER_WAY).mappings()]


def list_rollouts(
    db: Database,
    model: str | None = None,
    *,
    kind: RolloutKind = RolloutKind.MODEL,
    is_active: bool = False,
    limit: int = 100,
) -> list[Rollout]:
    """Return rollouts, newest first: of one model, or of all of a kind; only the active ones if ``is_active``.

    They come without their evidence.
    """
    with db.autocommit() as connection:
        values = {"model": model, "kind": kind.value, "is_active": is_active, "limit": limit}
        return [read_rollout({**row, "evidence": {}}) for row in connection.execute(_LIST, values).mappings()]


def get_rollout(db: Database, rollout_id: str) -> Rollout:
    """Return a rollout. Raises NotFound."""
    with db.autocommit() as connection:
        row = connection.execute(_GET, {"id": rollout_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no rollout {rollout_id!r}", code="rollout_not_found", param="rollout")
    return read_rollout(row)


def read_rollout(row: RowMapping | Mapping[str, Any]) -> Rollout:
    """Return a row of ``rollouts`` as a Rollout."""
    known = {name: row[name] for name in _FIELDS}
    return Rollout(
        **{
            **known,
            "kind": RolloutKind(row["kind"]),
            "mode": RolloutMode(row["mode"]),
            "sticky_key": StickyKey(row["sticky_key"]),
            "state": RolloutState(row["state"]),
            "steps": tuple(Step(**step) for step in row["steps"]),
        }
    )

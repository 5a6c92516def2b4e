"""Starts rollouts and records what happens to them: each change is one transaction with its row in the audit log."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Final

import structlog
from sqlalchemy import Connection, text

from headrace.features.rollouts.rollouts import (
    COLUMNS,
    Rollout,
    RolloutKind,
    RolloutMode,
    Step,
    StickyKey,
    read_rollout,
)
from headrace.features.rollouts.transitions import RolloutAction, Transition, after
from headrace.store.audit_log import record
from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, InvalidRequest, NotFound, NoWorker, PreconditionFailed
from headrace.store.failpoints import failpoint
from headrace.store.ids import new_id
from headrace.store.json_text import dump_json
from headrace.store.registry import pipeline_aliases
from headrace.store.registry.models import DEFAULT_ALIAS, ModelVersion, point, queue_name, version_of
from headrace.store.registry.versions import check_ready, refuse_rolled_back

log = structlog.get_logger(__name__)

MAX_STEPS: Final = 50

_INSERT = text(f"""
INSERT INTO rollouts (
    id, model, kind, alias, stable_version, candidate_version, mode, sticky_key, steps, bounds, started_by)
VALUES (
    :id, :model, :kind, :alias, :stable, :candidate, :mode, :sticky_key, CAST(:steps AS jsonb),
    CAST(:bounds AS jsonb), :actor)
ON CONFLICT (model, alias) WHERE state IN ('running', 'paused') DO NOTHING
RETURNING {COLUMNS}
""")

# The version of an alias, locked, so that it is not moved while the rollout starts or ends.
_POINTED = text("SELECT version FROM aliases WHERE model = :model AND alias = :alias FOR UPDATE")

_LOCK = text(f"SELECT {COLUMNS}, clock_timestamp() AS now FROM rollouts WHERE id = :id FOR UPDATE")

_CHANGE = text("""
UPDATE rollouts SET
    state = :state, current_step = :current_step, step_since = :step_since, paused_at = :paused_at,
    ended_at = :ended_at, reason = :reason, revision = :revision
WHERE id = :id
""")

_NOTE = text("UPDATE rollouts SET evidence = CAST(:evidence AS jsonb) WHERE id = :id")

_CHANGED = ("state", "current_step", "step_since", "paused_at", "ended_at", "reason", "revision")


@dataclass(frozen=True, slots=True)
class NewRollout:
    """A rollout to start: ``model@alias`` goes to version ``candidate``.

    ``force``: also if the candidate was rolled back before. ``require_worker``: only if a worker serves the candidate.
    """

    model: str
    candidate: int
    steps: Sequence[Step]
    alias: str = DEFAULT_ALIAS
    mode: RolloutMode = RolloutMode.CANARY
    sticky_key: StickyKey = StickyKey.USER
    bounds: Mapping[str, Any] = field(default_factory=dict)
    force: bool = False
    require_worker: bool = False


def start(db: Database, new: NewRollout, actor: str, *, tenant_id: str | None = None) -> Rollout:
    """Start a rollout from the version that a model's alias names. ``tenant_id``: of the actor, for the audit log.

    Raises InvalidRequest, NotFound, NoWorker, and Conflict if the alias has an active rollout.
    """
    check_steps(new.steps)
    if new.require_worker and queue_name(new.model, new.candidate) not in presence.read_serving(db):
        name = queue_name(new.model, new.candidate)
        raise NoWorker(f"no worker serves {name}: start `headrace worker --model {name}` first", param="version")
    with db.begin(tenant_id=tenant_id) as connection:
        candidate = version_of(connection, new.model, new.candidate)
        check_ready(connection, new.model, new.candidate)
        stable = _stable(connection, new)
        _check_candidate(connection, new, stable, candidate)
        rollout = _insert(connection, new, stable.version, RolloutKind.MODEL, actor, tenant_id)
    log.info("rollout.started", **_named(rollout))
    return rollout


def start_of_pipeline(db: Database, new: NewRollout, actor: str, tenant_id: str) -> Rollout:
    """Start a rollout of a tenant's pipeline, whose id is ``new.model``, from the version that its alias names.

    Raises InvalidRequest, NotFound, and Conflict if the alias has a canary or an active rollout.
    """
    check_steps(new.steps)
    with db.begin(tenant_id=tenant_id) as connection:
        stable = pipeline_aliases.stable_version(connection, tenant_id, new.model, new.alias, new.candidate)
        if not new.force:
            refuse_rolled_back(connection, new.model, new.candidate)
        rollout = _insert(connection, new, stable, RolloutKind.PIPELINE, actor, tenant_id)
    log.info("rollout.started", **_named(rollout))
    return rollout


def _insert(
    connection: Connection, new: NewRollout, stable: int, kind: RolloutKind, actor: str, tenant_id: str | None
) -> Rollout:
    values = {
        "id": new_id("rollout"),
        "model": new.model,
        "kind": kind.value,
        "alias": new.alias,
        "stable": stable,
        "candidate": new.candidate,
        "mode": new.mode.value,
        "sticky_key": new.sticky_key.value,
        "steps": dump_json([asdict(step) for step in new.steps]),
        "bounds": dump_json(dict(new.bounds)),
        "actor": actor,
    }
    row = connection.execute(_INSERT, values).mappings().one_or_none()
    if row is None:
        raise Conflict(
            f"{new.model}@{new.alias} has an active rollout: end it with promote or abort", code="rollout_active"
        )
    rollout = read_rollout(row)
    _record(connection, tenant_id, actor, "started", rollout)
    return rollout


def change(
    db: Database,
    rollout_id: str,
    transition: Transition,
    actor: str,
    *,
    expected: int | None = None,
    tenant_id: str | None = None,
) -> Rollout:
    """Carry out an action, and return the rollout after it. A promotion moves the alias in the same transaction.

    ``expected``: the revision that the rollout must have. Raises NotFound, Conflict, PreconditionFailed.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_LOCK, {"id": rollout_id}).mappings().one_or_none()
        if row is None:
            raise NotFound(f"no rollout {rollout_id!r}", code="rollout_not_found", param="rollout")
        before, now = read_rollout(row), row["now"]
        if expected not in {None, before.revision}:
            message = f"the rollout {rollout_id} has changed since revision {expected}: read it again, then decide"
            raise PreconditionFailed(message, code="rollout_changed")
        changed = after(before, transition, now)
        if transition.action is RolloutAction.PROMOTE:
            _point(connection, before)
        connection.execute(_CHANGE, {"id": rollout_id, **{name: getattr(changed, name) for name in _CHANGED}})
        _record(connection, tenant_id, actor, transition.action.value, changed)
        failpoint("rollout.before_commit")
    failpoint("rollout.committed")
    if transition.action is RolloutAction.ROLL_BACK:
        log.warning("rollout.rolled_back", reason=transition.reason, **_named(changed))
    else:
        log.info("rollout.changed", action=transition.action.value, reason=transition.reason, **_named(changed))
    return changed


def note_evidence(db: Database, rollout: Rollout, evidence: Mapping[str, Any]) -> None:
    """Store the judge's evidence with the rollout."""
    with db.autocommit() as connection:
        connection.execute(_NOTE, {"id": rollout.id, "evidence": dump_json(dict(evidence))})


def check_steps(steps: Sequence[Step]) -> None:
    """Raise InvalidRequest unless the percentages grow from above 0 to at most 100."""
    if not 1 <= len(steps) <= MAX_STEPS:
        raise InvalidRequest(f"a rollout has 1 to {MAX_STEPS} steps", param="steps")
    percents = [step.percent for step in steps]
    if percents[0] <= 0 or percents[-1] > 100 or any(higher <= lower for lower, higher in pairwise(percents)):
        raise InvalidRequest(
            "each step has a higher percentage than the one before, from above 0 to 100", param="steps"
        )
    if any(step.hold_s < 0 or step.min_jobs < 0 or not (step.hold_s or step.min_jobs) for step in steps):
        raise InvalidRequest("each step holds for a time, for a number of jobs, or for both", param="steps")


def _stable(connection: Connection, new: NewRollout) -> ModelVersion:
    """Return the version that the alias names, with the alias locked: the version is not retired meanwhile."""
    number = connection.execute(_POINTED, {"model": new.model, "alias": new.alias}).scalar_one_or_none()
    if number is None:
        raise NotFound(f"{new.model} has no alias {new.alias!r}", code="alias_not_found", param="alias")
    return version_of(connection, new.model, number)


def _check_candidate(connection: Connection, new: NewRollout, stable: ModelVersion, candidate: ModelVersion) -> None:
    name = queue_name(candidate.model, candidate.version)
    if candidate.version == stable.version:
        raise Conflict(f"{new.model}@{new.alias} names version {stable.version} already", code="rollout_not_needed")
    if candidate.task != stable.task:
        raise InvalidRequest(
            f"{name} is for the task {candidate.task}, the alias's version for {stable.task}", param="version"
        )
    if new.mode is RolloutMode.SHADOW and candidate.template != stable.template:
        raise InvalidRequest(
            f"{name} has another default template: shadow mode gives it copies of the stable version's prompts, "
            "so compare templates with a canary",
            param="mode",
        )
    if not new.force:
        refuse_rolled_back(connection, new.model, new.candidate)


def _point(connection: Connection, rollout: Rollout) -> None:
    """Move the alias to the candidate. Raises NotFound or Conflict if that may not take jobs."""
    if rollout.kind is RolloutKind.PIPELINE:
        pipeline_aliases.point(connection, rollout.model, rollout.alias, rollout.candidate_version)
        return
    connection.execute(_POINTED, {"model": rollout.model, "alias": rollout.alias})
    check_ready(connection, rollout.model, rollout.candidate_version)
    point(connection, rollout.model, rollout.alias, rollout.candidate_version)


def _record(connection: Connection, tenant_id: str | None, actor: str, what: str, rollout: Rollout) -> None:
    detail = {
        "alias": f"{rollout.model}@{rollout.alias}",
        "stable": rollout.stable_version,
        "candidate": rollout.candidate_version,
        "state": rollout.state.value,
        "step": rollout.current_step,
    }
    record(connection, tenant_id, actor, f"rollout.{what}", rollout.id, detail)


def _named(rollout: Rollout) -> dict[str, object]:
    """Return the fields of a log event."""
    return {
        "rollout": rollout.id,
        "alias": f"{rollout.model}@{rollout.alias}",
        "stable": rollout.stable_version,
        "candidate": rollout.candidate_version,
        "percent": rollout.percent,
    }

"""Rollouts as the API shows them, and the body that starts one."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.features.rollouts.bounds import Bounds
from headrace.features.rollouts.changes import MAX_STEPS, NewRollout
from headrace.features.rollouts.rollouts import Rollout, RolloutKind, RolloutMode, RolloutState, Step, StickyKey
from headrace.producer_api.http.views import seconds
from headrace.store.registry.models import DEFAULT_ALIAS

_LONGEST_HOLD_S = 30 * 86_400

_TENANT_WARNING = (
    "with the sticky key `tenant` longer or shorter answers are practically never found, and few more errors not "
    "always: use `user` or `conversation` where requests have one, else `job`"
)


class StepObject(BaseModel):
    """A step of a rollout: it holds for its time, and until its jobs have ended."""

    model_config = ConfigDict(extra="forbid")

    percent: float = Field(gt=0, le=100, description="share of the sticky keys that goes to the candidate")
    hold_s: float = Field(0.0, ge=0, le=_LONGEST_HOLD_S, description="seconds that it holds")
    min_jobs: int = Field(50, ge=0, le=1_000_000, description="jobs of the candidate that must have ended in it")


class RolloutTerms(BaseModel):
    """The part of a rollout to start that is the same for a model and for a pipeline."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1, le=2**31 - 1, description="the candidate; of a model a version that is ready")
    steps: list[StepObject] = Field(min_length=1, max_length=MAX_STEPS, description="each with a higher percentage")
    mode: RolloutMode = Field(RolloutMode.CANARY, description="`shadow`: the candidate gets copies, no caller's job")
    bounds: Bounds = Field(default_factory=Bounds, description="how much worse the candidate may be")
    force: bool = Field(False, description="also if a rollout of the candidate was rolled back")


class RolloutRequest(RolloutTerms):
    """A rollout to start."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2",
                    "version": 3,
                    "steps": [{"percent": 1, "hold_s": 600}, {"percent": 50, "min_jobs": 500}],
                }
            ]
        },
    )

    model: Annotated[str, Field(min_length=1, max_length=128, description="a model's name")]
    alias: str = Field(DEFAULT_ALIAS, description="the alias that goes to the candidate")
    sticky_key: StickyKey = Field(
        StickyKey.USER,
        description="what keeps to one version; a job without a conversation or a user is divided by the next: user, "
        "tenant. `job`: a job without a conversation stands alone",
    )
    require_worker: bool | None = Field(
        None, description="refuse if no worker serves the candidate; default: HEADRACE_REQUIRE_WORKER"
    )


class RolloutCheck(BaseModel):
    """A comparison of the two versions."""

    name: str = Field(description="what was compared")
    stable: float | None = Field(description="the stable version's usual value; null without a pair of jobs")
    candidate: float | None = Field(description="the candidate's")
    bound: float = Field(description="what the rollout allows")
    num_pairs: int = Field(description="pairs of jobs that were compared")
    log_e: float = Field(description="decimal logarithm of the evidence against the candidate")
    needed: float = Field(description="from here on the check is bad")
    decision: Literal["undecided", "good", "bad"] = Field(description="the result; one `bad` check rolls back")
    text: str = Field(description="the result in a sentence")


class RolloutSummary(BaseModel):
    """A rollout without the judge's verdict."""

    id: str
    object: Literal["rollout"] = "rollout"
    model: str = Field(description="the model's name, or the id of the pipeline")
    kind: RolloutKind = Field(description="`model` or `pipeline`")
    alias: str = Field(description="the alias that goes to the candidate")
    stable_version: int = Field(description="the version that the alias named at the start")
    candidate_version: int = Field(description="the version that is rolled out")
    mode: RolloutMode = Field(description="`canary`, or `shadow`: the candidate gets copies")
    sticky_key: StickyKey = Field(description="what keeps to one version")
    steps: list[StepObject] = Field(description="all of its steps")
    state: RolloutState = Field(description="`running` and `paused` divide the jobs; the others are its ends")
    current_step: int = Field(description="counted from 0")
    percent: float = Field(description="share of the sticky keys that goes to the candidate now")
    step_since: int = Field(description="when the step began; a pause does not count")
    started_at: int = Field(description="when it was started, Unix seconds")
    started_by: str = Field(description="the key that started it")
    ended_at: int | None = Field(description="when it ended, Unix seconds")
    reason: str | None = Field(description="of the last change")
    bounds: Bounds = Field(description="how much worse the candidate may be")
    revision: int = Field(description="raised by each change; value of If-Match")
    warning: str | None = Field(description="what the judge cannot find in this rollout; null: nothing to warn of")


class RolloutObject(RolloutSummary):
    """A rollout."""

    checks: list[RolloutCheck] = Field(description="the judge's last verdict")
    judged_at: int | None = Field(description="when the judge looked last")
    waits_for: str | None = Field(description="what the step waits for; after its time the rollout stays where it is")
    job_percent: float | None = Field(
        description="the candidate's share of the newest jobs of this step; it differs from `percent` where few keys "
        "bring much of the load; null without jobs"
    )


class RolloutList(BaseModel):
    """Rollouts, newest first."""

    object: Literal["list"] = "list"
    data: list[RolloutSummary]


def new_rollout(
    terms: RolloutTerms, *, model: str, alias: str, sticky_key: StickyKey, require_worker: bool = False
) -> NewRollout:
    """Return the rollout of ``model``, a model's name or a pipeline's id, on these terms."""
    return NewRollout(
        model=model,
        candidate=terms.version,
        steps=[Step(step.percent, step.hold_s, step.min_jobs) for step in terms.steps],
        alias=alias,
        mode=terms.mode,
        sticky_key=sticky_key,
        bounds=terms.bounds.model_dump(exclude_defaults=True),
        force=terms.force,
        require_worker=require_worker,
    )


def rollout_object(rollout: Rollout) -> RolloutObject:
    """Return the rollout with its checks."""
    evidence: dict[str, Any] = rollout.evidence
    return RolloutObject(
        **dict(rollout_summary(rollout)),
        checks=[RolloutCheck.model_validate(check) for check in evidence.get("checks", ())],
        judged_at=evidence.get("at"),
        waits_for=evidence.get("waits_for") if rollout.state is RolloutState.RUNNING else None,
        job_percent=evidence.get("job_percent"),
    )


def rollout_summary(rollout: Rollout) -> RolloutSummary:
    """Return the rollout as a list shows it."""
    return RolloutSummary(
        id=rollout.id,
        model=rollout.model,
        kind=rollout.kind,
        alias=rollout.alias,
        stable_version=rollout.stable_version,
        candidate_version=rollout.candidate_version,
        mode=rollout.mode,
        sticky_key=rollout.sticky_key,
        steps=[StepObject(percent=one.percent, hold_s=one.hold_s, min_jobs=one.min_jobs) for one in rollout.steps],
        state=rollout.state,
        current_step=rollout.current_step,
        percent=rollout.percent,
        step_since=int(rollout.step_since.timestamp()),
        started_at=int(rollout.started_at.timestamp()),
        started_by=rollout.started_by,
        ended_at=seconds(rollout.ended_at),
        reason=rollout.reason,
        bounds=Bounds.model_validate(rollout.bounds),
        revision=rollout.revision,
        warning=_TENANT_WARNING if _is_by_tenant(rollout) else None,
    )


def _is_by_tenant(rollout: Rollout) -> bool:
    return rollout.mode is RolloutMode.CANARY and rollout.sticky_key is StickyKey.TENANT

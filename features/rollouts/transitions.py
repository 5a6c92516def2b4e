"""Decides what a rollout does next. Pure: it reads no clock and no database."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from headrace.features.rollouts.judge import Verdict
from headrace.features.rollouts.progress import Progress
from headrace.features.rollouts.rollouts import Rollout, RolloutMode, RolloutState
from headrace.store.errors import Conflict

_ENOUGH_PAIRS = 30
"""Pairs of jobs without which nothing is promoted, unless the last step asks for fewer jobs."""


class RolloutAction(StrEnum):
    """What can happen to an active rollout; each is the last part of its audit action and of its log event."""

    ADVANCE = "advanced"
    PAUSE = "paused"
    RESUME = "resumed"
    PROMOTE = "promoted"
    ABORT = "aborted"
    ROLL_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class Transition:
    """The next action and its reason, in a sentence."""

    action: RolloutAction
    reason: str


def next_transition(rollout: Rollout, progress: Progress, verdict: Verdict) -> Transition | None:
    """Return what is to happen now, or None. A bad verdict counts in a pause too; a shadow ends without a promotion."""
    if verdict.is_bad:
        return Transition(RolloutAction.ROLL_BACK, verdict.reason or "the candidate is worse than the stable version")
    if rollout.state is RolloutState.PAUSED or waits_for(rollout, progress, verdict) is not None:
        return None
    if rollout.current_step + 1 < len(rollout.steps):
        return Transition(RolloutAction.ADVANCE, f"step {rollout.current_step + 1} has passed")
    if rollout.mode is RolloutMode.SHADOW:
        return Transition(RolloutAction.ABORT, "the last step has passed; a shadow moves no alias")
    return Transition(RolloutAction.PROMOTE, "the last step has passed")


def waits_for(rollout: Rollout, progress: Progress, verdict: Verdict) -> str | None:
    """Return what the step still waits for, in a sentence; None if it has passed.

    Time alone promotes nothing: the last step of a canary also waits for pairs of jobs, and for doubtful checks.
    """
    if progress.now < _end_of_hold(rollout):
        return "the time of the step"
    if not progress.is_served:
        return "a worker that serves the candidate"
    min_jobs = rollout.steps[rollout.current_step].min_jobs
    if progress.num_in_step < min_jobs:
        return f"jobs of the candidate: fewer than {min_jobs} have ended in this step"
    if rollout.current_step + 1 < len(rollout.steps) or rollout.mode is RolloutMode.SHADOW:
        return None
    return _missing_evidence(min_jobs, verdict)


def _missing_evidence(min_jobs: int, verdict: Verdict) -> str | None:
    enough = max(1, min(min_jobs, _ENOUGH_PAIRS))
    if verdict.num_pairs < enough:
        return f"pairs of jobs to compare: there are {verdict.num_pairs} of {enough}. Or promote or abort it yourself"
    if verdict.doubts is not None:
        return f"a decision of the judge, or yours: {verdict.doubts}"
    return None


def _end_of_hold(rollout: Rollout) -> datetime:
    return rollout.step_since + timedelta(seconds=rollout.steps[rollout.current_step].hold_s)


def overdue_s(rollout: Rollout, progress: Progress) -> float:
    """Return for how many seconds the step of a running rollout has waited for jobs or a worker after its time."""
    return max(0.0, (progress.now - _end_of_hold(rollout)).total_seconds())


def after(rollout: Rollout, transition: Transition, now: datetime) -> Rollout:
    """Return the rollout after the action. Raises Conflict for an action that its state does not allow."""
    if not rollout.state.is_active:
        raise Conflict(f"the rollout {rollout.id} has ended: it was {rollout.state.value}", code="rollout_ended")
    changed = replace(rollout, reason=transition.reason, revision=rollout.revision + 1)
    match transition.action:
        case RolloutAction.ADVANCE:
            return replace(changed, current_step=rollout.current_step + 1, step_since=now)
        case RolloutAction.PAUSE:
            return replace(changed, state=RolloutState.PAUSED, paused_at=rollout.paused_at or now)
        case RolloutAction.RESUME:
            # The time of the pause does not count.
            paused_for = now - (rollout.paused_at or now)
            return replace(
                changed, state=RolloutState.RUNNING, paused_at=None, step_since=rollout.step_since + paused_for
            )
        case RolloutAction.PROMOTE | RolloutAction.ABORT | RolloutAction.ROLL_BACK:
            return replace(changed, state=RolloutState(transition.action.value), paused_at=None, ended_at=now)

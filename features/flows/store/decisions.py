"""Decides what follows from the states of a flow's steps. Pure.

a step has ended otherwise than well, or the flow shall be cancelled ──▶ stop the others
no step runs, and none will                                          ──▶ the flow ends
all steps that a waiting step needs have succeeded                   ──▶ it is ready
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from headrace.store.schema.job_states import JobState


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow as its row has it. ``answer_id``: the step whose output is the flow's."""

    id: str
    tenant_id: str
    state: JobState
    is_cancelled: bool
    answer_id: str


@dataclass(frozen=True, slots=True)
class FlowStep:
    """A step. ``needs``: names of other steps. ``is_waiting``: it is in no worker's queue yet."""

    id: str
    name: str
    needs: tuple[str, ...]
    state: JobState
    is_waiting: bool = False
    completed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class FlowDecision:
    """``ready``: steps for the queues of their versions. ``stopped``: queued and running steps to cancel. ``end``: the
    state in which the flow ends now; ``cause``: the step that made it end so, if one did. ``has_begun``: the flow runs.
    """

    ready: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    end: JobState | None = None
    cause: FlowStep | None = None
    has_begun: bool = False


# What the flow becomes, by the worst end of its steps.
_WORST_FIRST = (JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED)


def decide(flow: Flow, steps: Sequence[FlowStep]) -> FlowDecision:
    """Return what follows. An ended flow stays as it is; its open steps are stopped."""
    still_open = [step for step in steps if not step.state.is_terminal]
    if flow.state.is_terminal:
        return FlowDecision(stopped=tuple(step.id for step in still_open))
    is_over = flow.is_cancelled or any(step.state in _WORST_FIRST for step in steps)
    running = [step for step in still_open if step.state is JobState.RUNNING]
    if is_over and still_open:
        # The flow ends with its last running step, so that nothing is computed and billed for an ended job.
        stopped = tuple(step.id for step in still_open)
        return FlowDecision(stopped=stopped, has_begun=True) if running else _ended(flow, steps, stopped)
    if not still_open:
        return _ended(flow, steps, ())
    succeeded = {step.name for step in steps if step.state is JobState.SUCCEEDED}
    ready = tuple(step.id for step in still_open if step.is_waiting and succeeded.issuperset(step.needs))
    return FlowDecision(ready=ready, has_begun=bool(running or succeeded))


def _ended(flow: Flow, steps: Sequence[FlowStep], stopped: tuple[str, ...]) -> FlowDecision:
    for state in _WORST_FIRST:
        found = [step for step in steps if step.state is state]
        if found:
            cause = min(found, key=lambda step: (step.completed_at is None, step.completed_at, step.id))
            return FlowDecision(stopped=stopped, end=state, cause=cause)
    return FlowDecision(stopped=stopped, end=JobState.CANCELLED if stopped else JobState.SUCCEEDED)

"""The steps that the end of a step adds to its flow, as values."""

from dataclasses import dataclass, field
from typing import Any

from headrace.store.ids import new_id


@dataclass(frozen=True, slots=True)
class AskedApproval:
    """An approval that an added step waits for: of a call of ``tool``, for ``within_s`` seconds."""

    tool: str
    within_s: float
    id: str = field(default_factory=lambda: new_id("apr"))


@dataclass(frozen=True, slots=True)
class AddedStep:
    """A step to add. ``needs``: names of steps; one is the step that adds it, or another added step.

    ``name``: as ``features.flows.store.growth.names_after`` makes them.
    ``payload``, ``input_tokens`` and ``cost_tokens`` are as of a step that was accepted with its job: references to
    outputs are marks (``store.payloads.step_payload``). ``approval``: the step needs its id too, as
    if it were a step, until it was decided.
    """

    name: str
    task: str
    model: str
    model_version: int
    payload: dict[str, Any]
    input_tokens: int
    cost_tokens: int
    needs: tuple[str, ...]
    approval: AskedApproval | None = None
    id: str = field(default_factory=lambda: new_id("job"))


@dataclass(frozen=True, slots=True)
class Added:
    """What the end of a step adds. ``answer``: the name of the added step that is now the answer of the job.

    Only the step that is the answer may name one; without it the answer stays. ``most_steps``: of the whole flow.
    """

    steps: tuple[AddedStep, ...]
    answer: str | None = None
    most_steps: int = 16

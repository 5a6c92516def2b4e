"""Calls that a job begins with: a face has brought the answers to their approvals. They are its first steps."""

from dataclasses import dataclass
from typing import Final

CALL_TASK: Final = "call_tool"
"""The task of a step that calls a tool."""

CALL_STEP: Final = "call_{}"
"""The name of the step that makes a call; the first one has the number 1."""


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """A call that an earlier job asked for, and that this one begins with.

    ``approval_id``: of the request for an approval. ``function`` and ``arguments``: as the model wrote them.
    ``refusal``: the reason if it was refused, also an empty one; None: it was approved.
    """

    approval_id: str
    function: str
    arguments: str
    refusal: str | None = None


def first_steps(count: int) -> tuple[str, ...]:
    """Return the names of the steps that a job with so many answered calls begins with, in their order."""
    return tuple(CALL_STEP.format(number) for number in range(1, count + 1))

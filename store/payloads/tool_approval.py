"""Which calls of tools wait for an approval, in the form of OpenAI's MCP tool: ``always``, ``never``, or by name."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, model_validator

from headrace.store.payloads.strict_model import Strict

MOST_NAMES: Final = 128
MOST_REASON_CHARS: Final = 1000
"""Of an answer to an approval."""

ToolName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Rule = Literal["always", "never"]


class NamedTools(Strict):
    """A list of tools."""

    tool_names: Annotated[tuple[ToolName, ...], Field(min_length=1, max_length=MOST_NAMES)] = Field(
        description="names of tools"
    )


class ApprovalByName(Strict):
    """Rules by name. With `never`, each tool that neither list names waits for an approval."""

    always: NamedTools | None = Field(None, description="calls of these wait")
    never: NamedTools | None = Field(None, description="calls of these do not wait")

    @model_validator(mode="after")
    def _are_apart(self) -> "ApprovalByName":
        if self.always is None and self.never is None:
            raise ValueError("give `always`, `never` or both")
        if both := _names(self.always) & _names(self.never):
            raise ValueError(f"{min(both)} is in `always` and in `never`")
        return self


RequireApproval = Rule | ApprovalByName


def needs_approval(rule: RequireApproval, *names: str) -> bool:
    """Return True if a call waits. ``names``: all names by which the rule may name the tool."""
    if not isinstance(rule, ApprovalByName):
        return rule == "always"
    if not _names(rule.always).isdisjoint(names):
        return True
    return rule.never is not None and _names(rule.never).isdisjoint(names)


def named_in(rule: RequireApproval) -> frozenset[str]:
    """Return the tools that a rule names."""
    if not isinstance(rule, ApprovalByName):
        return frozenset()
    return _names(rule.always) | _names(rule.never)


def _names(tools: NamedTools | None) -> frozenset[str]:
    return frozenset() if tools is None else frozenset(tools.tool_names)


class ApprovalState(StrEnum):
    """The state of an approval. Only ``pending`` changes."""

    PENDING = "pending"
    APPROVED = "approved"
    REFUSED = "refused"
    EXPIRED = "expired"
    """Nobody answered in time: for the model it is a refusal."""
    CANCELLED = "cancelled"
    """The job has ended before an answer."""


@dataclass(frozen=True, slots=True)
class Approval:
    """A call that waits or has waited. ``job_id``: the job; ``step`` and ``step_id``: its step that makes the call.

    ``arguments``: as the model wrote them; None if they are no longer kept. ``decided_by``: the id of a key.
    """

    id: str
    job_id: str
    step: str
    step_id: str
    tool: str
    arguments: str | None
    state: ApprovalState
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None
    decided_by: str | None
    reason: str | None

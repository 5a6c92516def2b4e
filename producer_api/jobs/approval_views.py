"""Request and response models of the approvals that calls of tools wait for. No I/O."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.producer_api.http.views import seconds
from headrace.store.payloads.strict_model import Strict
from headrace.store.payloads.tool_approval import MOST_REASON_CHARS, Approval, ApprovalState


class ApprovalAnswer(Strict):
    """The answer to an approval."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"approve": False, "reason": "Ask for less."}]}
    )

    approve: bool = Field(strict=True, description="true: the call is made; false: the model is told that it was not")
    reason: str | None = Field(
        None, min_length=1, max_length=MOST_REASON_CHARS, description="of a refusal: the model is told it"
    )


class ApprovalObject(BaseModel):
    """A call of a tool that waits, or has waited, for an approval."""

    id: str
    object: Literal["approval"] = "approval"
    status: ApprovalState = Field(
        description="`pending`; `expired`: nobody answered in time; `cancelled`: the job has ended before an answer"
    )
    job_id: str = Field(description="the job that waits")
    step: str = Field(description="the name of its step that makes the call")
    tool: str = Field(description="the name by which the model calls the tool")
    arguments: str | None = Field(description="JSON, as the model wrote it; null: no longer kept")
    created_at: int
    expires_at: int = Field(description="when the call is refused unless it is approved before")
    decided_at: int | None = Field(description="when it was answered or ran out of time, Unix seconds; null until then")
    decided_by: str | None = Field(description="the id of the key that answered")
    reason: str | None = Field(description="why it was refused, as the answer says")


class ApprovalList(BaseModel):
    """A page of approvals; the next page is ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[ApprovalObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def approval_object(found: Approval) -> ApprovalObject:
    """Return an approval as the API shows it."""
    return ApprovalObject(
        id=found.id,
        status=found.state,
        job_id=found.job_id,
        step=found.step,
        tool=found.tool,
        arguments=found.arguments,
        created_at=int(found.created_at.timestamp()),
        expires_at=int(found.expires_at.timestamp()),
        decided_at=seconds(found.decided_at),
        decided_by=found.decided_by,
        reason=found.reason,
    )


def approval_list(found: Sequence[Approval], limit: int) -> ApprovalList:
    """Return a page of approvals; ``found`` has up to ``limit + 1`` of them."""
    page = [approval_object(one) for one in found[:limit]]
    return ApprovalList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(found) > limit,
    )

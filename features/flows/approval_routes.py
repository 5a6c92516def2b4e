"""Routes of the approvals that calls of tools wait for: list, answer."""

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.flows.store import approvals
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.jobs.approval_views import (
    ApprovalAnswer,
    ApprovalList,
    ApprovalObject,
    approval_list,
    approval_object,
)
from headrace.producer_api.jobs.job_routes import JobId
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.db.database import Database
from headrace.store.payloads.tool_approval import Approval, ApprovalState

router = APIRouter(prefix="/v1", tags=["tools"], route_class=StrictJsonRoute, responses=DOCUMENTED)

ApprovalId = Annotated[str, Path(description="the approval", examples=["apr_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]


@router.get("/approvals", response_model=ApprovalList, summary="List approvals")
async def list_approvals(
    runtime: RuntimeOf,
    principal: JobsReader,
    job_id: Annotated[str | None, Query(description="only those of this job")] = None,
    status: ApprovalState | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
    order: Literal["desc", "asc"] = "desc",
) -> Response:
    """Return the calls of tools that wait, or have waited, for an approval, newest first."""

    def read(db: Database) -> list[Approval]:
        return approvals.list_approvals(
            db,
            principal.tenant_id,
            job_id=job_id,
            state=status,
            limit=limit + 1,
            after=after,
            descending=order == "desc",
        )

    return JsonResponse(approval_list(await runtime.lists.read(principal, read), limit))


@router.post(
    "/jobs/{job_id}/approvals/{approval_id}", response_model=ApprovalObject, summary="Approve or refuse a call"
)
async def answer_approval(
    runtime: RuntimeOf, principal: JobsWriter, job_id: JobId, approval_id: ApprovalId, body: ApprovalAnswer
) -> Response:
    """Let a call of a tool go on, or let the model know that it was refused. The first answer holds.

    The same answer again is 200, the other one 409 `approval_decided`. So is an answer after the time limit or the end
    of the job.
    """
    decide = partial(approvals.decide, approve=body.approve, reason=body.reason, actor=principal.key_id)
    found = await run_in_threadpool(decide, runtime.db, principal.tenant_id, job_id, approval_id)
    return JsonResponse(approval_object(found))

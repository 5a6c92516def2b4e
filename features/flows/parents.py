"""What follows for a flow where a step of it begins or ends."""

from collections.abc import Collection, Sequence

from sqlalchemy import Connection

from headrace.features.flows.store import approvals, beginnings, growth, settling
from headrace.store.db.database import Database
from headrace.store.jobs.job_rows import Finish
from headrace.store.jobs.parent_part import ParentPart, Settled
from headrace.store.payloads.tool_approval import Approval, ApprovalState
from headrace.store.seal import Seal


def _settle(
    connection: Connection,
    parent_ids: Collection[str],
    seal: Seal,
    *,
    ended: Collection[str] = (),
    finishes: Sequence[Finish] = (),
) -> Settled:
    growth.add(connection, finishes, seal)
    return settling.settle(connection, parent_ids, seal, ended=ended)


def _waiting_for(db: Database, tenant_id: str, parent_id: str) -> Sequence[Approval]:
    return approvals.list_approvals(db, tenant_id, state=ApprovalState.PENDING, job_id=parent_id, descending=False)


PART = ParentPart(
    note_begun=beginnings.note_begun,
    lock_free=settling.lock_free,
    checked=growth.bounded,
    settle=_settle,
    note_usage=settling.note_usage,
    waiting_for=_waiting_for,
)

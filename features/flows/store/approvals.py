"""Calls of tools that wait for an approval: list, answer, expire.

    answer ──a call──▶ no worker may claim it ──approve──▶ the call runs
                        │                     ──refuse, time limit──▶ its worker tells the model, nothing is called
                        └─ cancel or deadline of the job ──▶ the step ends with the job

Nothing is held while a call waits: its step is a queued row that needs the id of the approval
(``growth``). An answer takes this id away, in a transaction that locks the flow first, as all do that
change steps. Everything is in Postgres, so it outlives each process. What is asked is the payload of the step, which
the policy's rules for outputs have seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from headrace.features.flows.store.settling import lock, settle
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, NotFound
from headrace.store.failpoints import failpoint
from headrace.store.json_text import dump_json
from headrace.store.payloads.tool_approval import Approval, ApprovalState
from headrace.store.seal import Seal, SealContext


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an approval, for the worker of its step."""

    state: ApprovalState
    reason: str | None


# An approval of a step that has ended cannot be answered, whatever ended it.
_STATE = "CASE WHEN approval.state = 'pending' AND step.state <> 'queued' THEN 'cancelled' ELSE approval.state END"

_SELECT = f"""
SELECT approval.id, approval.tenant_id, approval.job_id, step.step, approval.step_id, approval.tool, step.payload,
    {_STATE} AS state, approval.created_at, approval.expires_at, approval.decided_at, approval.decided_by,
    approval.reason
FROM tool_approvals AS approval JOIN jobs AS step ON step.id = approval.step_id
WHERE approval.tenant_id = :tenant_id"""

_FILTERS = f"""
    AND (CAST(:job_id AS text) IS NULL OR approval.job_id = :job_id)
    AND (CAST(:state AS text) IS NULL OR {_STATE} = :state)"""

# List approvals, newest first.
_NEWEST = text(f"""{_SELECT}{_FILTERS}
    AND (CAST(:after AS text) IS NULL OR approval.id < :after)
ORDER BY approval.id DESC LIMIT :limit""")

# List approvals, oldest first.
_OLDEST = text(f"""{_SELECT}{_FILTERS}
    AND (CAST(:after AS text) IS NULL OR approval.id > :after)
ORDER BY approval.id LIMIT :limit""")

# Read one approval of a job.
_GET = text(f"{_SELECT} AND approval.job_id = :job_id AND approval.id = :id")

# Read what became of the approval of a step.
_VERDICT = text("SELECT id, state, reason FROM tool_approvals WHERE tenant_id = :tenant_id AND step_id = :step_id")

# What follows in a statement with a table ``decided``: the step needs the approval no more, and the timeline says so.
_FOLLOWS = """
freed AS (
    UPDATE jobs SET needs = array_remove(needs, decided.id) FROM decided
    WHERE jobs.id = decided.step_id AND jobs.state = 'queued'
    RETURNING jobs.id, jobs.step
), noted AS (
    INSERT INTO job_events (job_id, kind, epoch, detail)
    SELECT decided.job_id, 'approval_decided', 0, jsonb_build_object(
        'approval', decided.id, 'step', freed.step, 'job', decided.step_id, 'tool', decided.tool,
        'state', decided.state)
    FROM decided JOIN freed ON freed.id = decided.step_id
    ORDER BY decided.id
)
SELECT decided.id FROM decided"""

# Answer an approval that waits.
_DECIDE = text(f"""
WITH decided AS (
    UPDATE tool_approvals AS approval SET
        state = :state, decided_at = clock_timestamp(), decided_by = :actor, reason = CAST(:reason AS jsonb)
    FROM jobs AS step
    WHERE approval.tenant_id = :tenant_id AND approval.id = :id AND approval.state = 'pending'
        AND approval.expires_at > clock_timestamp()
        AND step.id = approval.step_id AND step.state = 'queued' AND step.cancel_requested_at IS NULL
    RETURNING approval.id, approval.job_id, approval.step_id, approval.tool, approval.state
), {_FOLLOWS}
""")

# Lock the flows of approvals whose time is over. A locked flow is left for the next turn.
_LOCK_DUE = text("""
SELECT id FROM jobs WHERE id = ANY (ARRAY(
    SELECT job_id FROM tool_approvals WHERE state = 'pending' AND expires_at < now()
    ORDER BY expires_at LIMIT :limit))
ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")

# End the approvals of these flows whose time is over.
_EXPIRE = text(f"""
WITH decided AS (
    UPDATE tool_approvals AS approval SET
        state = CASE WHEN step.state = 'queued' THEN 'expired' ELSE 'cancelled' END, decided_at = clock_timestamp()
    FROM jobs AS step
    WHERE approval.job_id = ANY(CAST(:flows AS text[])) AND approval.state = 'pending' AND approval.expires_at < now()
        AND step.id = approval.step_id
    RETURNING approval.id, approval.job_id, approval.step_id, approval.tool, approval.state
), {_FOLLOWS}
""")


def list_approvals(
    db: Database,
    tenant_id: str,
    *,
    job_id: str | None = None,
    state: ApprovalState | None = None,
    limit: int = 100,
    after: str | None = None,
    descending: bool = True,
) -> list[Approval]:
    """Return at most ``limit`` approvals of the tenant, newest first by default. Raises CannotOpen."""
    values: dict[str, object] = {"tenant_id": tenant_id, "job_id": job_id, "state": state, "limit": limit}
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_NEWEST if descending else _OLDEST, values | {"after": after}).mappings().all()
    return [_approval(row, db.seal) for row in rows]


def decide(
    db: Database, tenant_id: str, job_id: str, approval_id: str, *, approve: bool, reason: str | None, actor: str
) -> Approval:
    """Approve or refuse a call, and return the approval. The same answer again changes nothing.

    The dispatcher announces the step, which runs the call or tells the model of the refusal. Raises NotFound, Conflict
    if the other answer was given before, the time limit is over or the job has ended.
    """
    wanted = ApprovalState.APPROVED if approve else ApprovalState.REFUSED
    told = None if reason is None else dump_json(db.seal.seal(reason, _context(tenant_id, approval_id)))
    values: dict[str, object] = {"tenant_id": tenant_id, "job_id": job_id, "id": approval_id, "actor": actor}
    with db.begin(tenant_id=tenant_id) as connection:
        _found(connection, values)
        lock(connection, [job_id])
        if connection.execute(_DECIDE, values | {"state": wanted, "reason": told}).first() is not None:
            record(connection, tenant_id, actor, f"tool_call.{wanted}", approval_id, {"job": job_id})
            settle(connection, [job_id], db.seal, announces=False)
            failpoint("approval.before_commit")
        row = _found(connection, values)
    found = _approval(row, db.seal)
    if found.state is not wanted:
        raise Conflict(_why(found), code="approval_decided")
    return found


def verdict_of(db: Database, tenant_id: str, step_id: str) -> Verdict | None:
    """Return what became of the approval of a step; None if it needs none. Raises CannotOpen."""
    values = {"tenant_id": tenant_id, "step_id": step_id}
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_VERDICT, values).one_or_none()
    if row is None:
        return None
    return Verdict(ApprovalState(row.state), db.seal.open(row.reason, _context(tenant_id, row.id)))


def expire_due(db: Database, limit: int) -> int:
    """End approvals whose time limit is over, and return their number. Their steps go on as refused."""
    with db.begin() as connection:
        flows: Sequence[str] = connection.execute(_LOCK_DUE, {"limit": limit}).scalars().all()
        if not flows:
            return 0
        expired = connection.execute(_EXPIRE, {"flows": flows}).all()
        settle(connection, flows, db.seal, announces=False)
        failpoint("approval.before_commit")
    return len(expired)


def _found(connection: Connection, values: Mapping[str, object]) -> RowMapping:
    row = connection.execute(_GET, values).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no approval {values['id']} of job {values['job_id']}")
    return row


def _why(found: Approval) -> str:
    match found.state:
        case ApprovalState.EXPIRED | ApprovalState.PENDING:
            return "the time limit of the approval is over, so the call is refused"
        case ApprovalState.CANCELLED:
            return "the job has ended, so there is nothing to approve"
        case _:
            return f"the call is {found.state} already: the first answer holds"


def _context(tenant_id: str, approval_id: str) -> SealContext:
    return SealContext(tenant_id, "tool_approvals", "reason", approval_id)


def _approval(row: RowMapping, seal: Seal) -> Approval:
    payload = seal.open(row["payload"], SealContext(row["tenant_id"], "jobs", "payload", row["step_id"]))
    asked: Mapping[str, Any] = payload.get("input") or {}
    kept = {name: value for name, value in row.items() if name not in ("tenant_id", "payload")}
    kept["state"] = ApprovalState(row["state"])
    kept["reason"] = seal.open(row["reason"], _context(row["tenant_id"], row["id"]))
    return Approval(**kept, arguments=asked.get("arguments"))

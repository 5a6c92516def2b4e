"""Calls that a response asked for and that the next response's job begins with: the answers to their approvals.

    response, its job has ended          next response, its job
    mcp_approval_request mcpr_1   ──▶    mcp_approval_response mcpr_1 ──▶ step call_1, with a row of ``tool_approvals``

The row is stored with the job and says at once what was answered, so the worker of the step reads it as that of a call
that has waited (``features.flows.store.approvals``). Its id is that of the request, so an approval is answered once.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, text

from headrace.store.audit_log import record
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.acceptance import NewJob
from headrace.store.jobs.answered_calls import first_steps
from headrace.store.json_text import dump_json
from headrace.store.seal import Seal, SealContext

if TYPE_CHECKING:
    from headrace.features.responses.new_response import NewResponse

ANSWERED: Final = "answered"
"""The field of a stored request of a response: the ids of the approvals that it answers, in the order of the calls."""

ITEM: Final = "mcp_approval_response"

# Store answers that were given before their calls became steps. An id that is there was answered before.
_STORE = text("""
INSERT INTO tool_approvals (
    id, tenant_id, job_id, step_id, tool, state, expires_at, decided_at, decided_by, reason)
SELECT id, tenant_id, job_id, step_id, tool, state, now(), clock_timestamp(), decided_by, reason
FROM json_to_recordset(CAST(:rows AS json)) AS r(
    id text, tenant_id text, job_id text, step_id text, tool text, state text, decided_by text, reason jsonb)
ORDER BY id
ON CONFLICT (id) DO NOTHING
RETURNING step_id
""")


def store_answers(connection: Connection, made: Sequence[tuple[NewJob, "NewResponse"]], seal: Seal) -> None:
    """Store the answers that new jobs bring, with their rows. Raises InvalidRequest if one was given before."""
    rows = [row for flow, response in made for row in _rows(flow, response, seal)]
    if not rows:
        return
    stored = {row.step_id for row in connection.execute(_STORE, {"rows": dump_json(rows)})}
    for row in rows:
        if row["step_id"] not in stored:
            message = f"the approval {row['id']} was answered before, by another response: the first answer holds"
            raise InvalidRequest(message, param="input")
        action, detail = f"tool_call.{row['state']}", {"job": row["job_id"]}
        record(connection, row["tenant_id"], row["decided_by"], action, row["id"], detail)


def _rows(flow: NewJob, response: "NewResponse", seal: Seal) -> list[dict[str, Any]]:
    if not response.request.get(ANSWERED):
        return []
    steps = {step.step: step for step in flow.steps}
    answers = {item["approval_request_id"]: item for item in response.input if item["type"] == ITEM}
    rows = []
    asked = response.request[ANSWERED]
    for name, approval_id in zip(first_steps(len(asked)), asked, strict=True):
        step, answer = steps[name], answers[approval_id]
        place = SealContext(flow.tenant_id, "tool_approvals", "reason", approval_id)
        rows.append(
            {
                "id": approval_id,
                "tenant_id": flow.tenant_id,
                "job_id": flow.id,
                "step_id": step.id,
                "tool": step.payload["input"]["tool"],
                "state": "approved" if answer["approve"] else "refused",
                "decided_by": flow.api_key_id or "",
                "reason": None if answer.get("reason") is None else seal.seal(answer["reason"], place),
            }
        )
    return rows

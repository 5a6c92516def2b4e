"""Adds steps to a flow while it runs: the transaction that ends a step well stores the steps that it brings.

    generate ──ended, asks for two tools──▶ call:1   call:2 ──▶ generate again, the answer now
                                            └─ stored with the end of the first step, or neither is

A step brings steps once, because it ends once. The flow keeps its deadline, its class and its owner for them.

An added step may wait for an approval (``approvals``). It needs the id of the approval as if that were a
step: so no release, also one that knows no approvals, takes it for ready. The answer takes the id out of ``needs``.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, text

from headrace.features.flows.store.added import Added, AddedStep
from headrace.store.jobs.flow_turns import MARK
from headrace.store.jobs.job_rows import Finish, encode
from headrace.store.jobs.terminal import DELIVERIES
from headrace.store.schema.event_types import APPROVAL_REQUIRED
from headrace.store.schema.job_states import UNSERVED_QUEUE, JobState
from headrace.store.seal import Seal, seal_job

# Read the names of the steps of these flows, and whether the flows shall be cancelled.
_NAMES = text("""
SELECT step.parent_id, step.step, flow.cancel_requested_at IS NOT NULL AS is_cancelled
FROM jobs AS step JOIN jobs AS flow ON flow.id = step.parent_id
WHERE step.parent_id = ANY(CAST(:flows AS text[]))
""")

# Store added steps, unless their flow has ended or shall be cancelled. A step waits in no worker's queue until what it
# needs has succeeded. The new answer begins with the epoch of the old one: readers of the flow's stream take it for a
# later attempt, which keeps nothing of the text before.
_ADD = text("""
WITH given AS (
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(
        flow_id text, id text, name text, task text, model text, model_version int, payload jsonb, input_tokens int,
        cost_tokens int, needs varchar[], epoch bigint)
), added AS (
    INSERT INTO jobs (
        id, tenant_id, task, model, model_version, queue, class_rank, priority, payload, input_tokens, cost_tokens,
        webhook, epoch, restarts_after, max_attempts, api_key_id, project_id, user_id, deadline_at, traceparent,
        parent_id, step, needs)
    SELECT
        given.id, flow.tenant_id, given.task, given.model, given.model_version, :unserved, flow.class_rank,
        flow.priority, given.payload, given.input_tokens, given.cost_tokens, '{"events": []}', given.epoch,
        NULLIF(given.epoch, 0), flow.max_attempts, flow.api_key_id, flow.project_id, flow.user_id, flow.deadline_at,
        flow.traceparent, flow.id, given.name, given.needs
    FROM given JOIN jobs AS flow ON flow.id = given.flow_id
    WHERE flow.task = 'flow' AND flow.state IN ('queued', 'running') AND flow.cancel_requested_at IS NULL
    RETURNING id
)
INSERT INTO job_events (job_id, kind, epoch) SELECT id, 'queued', 0 FROM added
""")

# Store what the added steps wait for, note it in the timelines of their flows, and tell webhooks. The subject of such a
# delivery is the step, because a job may wait for several approvals.
_ASK = text(f"""
WITH given AS (
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(id text, step_id text, tool text, within_s float8)
), asked AS (
    INSERT INTO tool_approvals (id, tenant_id, job_id, step_id, tool, expires_at)
    SELECT given.id, step.tenant_id, step.parent_id, step.id, given.tool, now() + make_interval(secs => given.within_s)
    FROM given JOIN jobs AS step ON step.id = given.step_id
    RETURNING id, tenant_id, job_id, step_id, tool
), noted AS (
    INSERT INTO job_events (job_id, kind, epoch, detail)
    SELECT asked.job_id, 'approval_requested', 0, jsonb_build_object(
        'approval', asked.id, 'step', step.step, 'job', asked.step_id, 'tool', asked.tool)
    FROM asked JOIN jobs AS step ON step.id = asked.step_id
    ORDER BY asked.id
), ended AS (
    SELECT asked.step_id AS id, flow.tenant_id, flow.webhook ->> 'url' AS url,
        NULLIF(flow.webhook -> 'events', 'null') AS events
    FROM asked JOIN jobs AS flow ON flow.id = asked.job_id
    WHERE flow.webhook -> 'events' IS DISTINCT FROM '[]'
), emitted AS (
    SELECT id, '{APPROVAL_REQUIRED}' AS type, false AS is_own FROM ended
), {DELIVERIES}
SELECT id FROM asked
""")

# Make other steps the answers of their flows.
_ANSWER = text("""
UPDATE jobs SET answer_id = given.answer_id
FROM unnest(CAST(:flows AS text[]), CAST(:old AS text[]), CAST(:new AS text[])) AS given(id, old_id, answer_id)
WHERE jobs.id = given.id AND jobs.answer_id = given.old_id AND jobs.task = 'flow'
    AND jobs.state IN ('queued', 'running') AND jobs.cancel_requested_at IS NULL
""")


def names_after(name: str, count: int) -> tuple[str, ...]:
    """Return the names of steps that the step ``name`` adds: ``answer`` adds ``answer:1``, which adds ``answer:2``.

    The next step that adds steps must be the last of them, else names would come twice.
    """
    base, _, number = name.partition(MARK)
    first = int(number or 0) + 1
    return tuple(f"{base}{MARK}{index}" for index in range(first, first + count))


def bounded(connection: Connection, finishes: Sequence[Finish]) -> list[Finish]:
    """Return the ends; a step whose flow would have too many steps, or a name twice, fails instead.

    So is a step cancelled that brings steps to a flow that shall be cancelled. Its flow has no answer without them.
    The flows are locked, so the count is exact.
    """
    names: dict[str, set[str]] = {finish.parent_id: set() for finish in finishes if finish.added and finish.parent_id}
    if not names:
        return [*finishes]
    cancelled: set[str] = set()
    for row in connection.execute(_NAMES, {"flows": list(names)}):
        names[row.parent_id].add(row.step)
        if row.is_cancelled:
            cancelled.add(row.parent_id)
    return [
        _bounded(finish, names[finish.parent_id], is_cancelled=finish.parent_id in cancelled)
        if finish.parent_id in names
        else finish
        for finish in finishes
    ]


def _bounded(finish: Finish, names: set[str], *, is_cancelled: bool) -> Finish:
    added: Added | None = finish.added
    if added is None or finish.state is not JobState.SUCCEEDED:
        return replace(finish, added=None)
    if is_cancelled:
        return replace(finish, state=JobState.CANCELLED, added=None)
    new = [step.name for step in added.steps]
    if len(names) + len(new) > added.most_steps:
        why = f"the job would have {len(names) + len(new)} steps, and at most {added.most_steps} are accepted"
        return _failed(finish, "too_many_steps", why)
    if len({*names, *new}) < len(names) + len(new):
        return _failed(finish, "internal_error", "an added step has the name of another one")
    names.update(new)
    return finish


def _failed(finish: Finish, code: str, why: str) -> Finish:
    error = {"code": code, "message": why, "retryable": False}
    return replace(
        finish, state=JobState.FAILED, output=None, error=error, deltas=(), logprobs=(), marks=(), added=None
    )


def add(connection: Connection, finishes: Sequence[Finish], seal: Seal) -> None:
    """Store what these ends add. Their steps have ended in this transaction, which has locked the flows."""
    growing = [finish for finish in finishes if finish.added is not None]
    if not growing:
        return
    rows = [row for finish in growing for row in _rows(finish, seal)]
    connection.execute(_ADD, {"rows": encode(rows), "unserved": UNSERVED_QUEUE})
    if asked := [_asked(step) for finish in growing for step in _steps(finish) if step.approval is not None]:
        connection.execute(_ASK, {"rows": encode(asked)})
    moved = [(finish, step.id) for finish in growing for step in _steps(finish) if step.name == _answer(finish)]
    if moved:
        flows, old = [finish.parent_id for finish, _ in moved], [finish.job_id for finish, _ in moved]
        connection.execute(_ANSWER, {"flows": flows, "old": old, "new": [step_id for _, step_id in moved]})


def _rows(finish: Finish, seal: Seal) -> list[dict[str, Any]]:
    return [
        {
            **asdict(step),
            **seal_job(seal, finish.tenant_id, step.id, {"payload": step.payload}),
            "needs": _needs(step),
            "flow_id": finish.parent_id,
            "epoch": finish.epoch if step.name == _answer(finish) else 0,
        }
        for step in _steps(finish)
    ]


def _needs(step: AddedStep) -> list[str]:
    return [*step.needs, *(() if step.approval is None else (step.approval.id,))]


def _asked(step: AddedStep) -> dict[str, object]:
    return {"step_id": step.id, **({} if step.approval is None else asdict(step.approval))}


def _steps(finish: Finish) -> tuple[AddedStep, ...]:
    return () if finish.added is None else finish.added.steps


def _answer(finish: Finish) -> str | None:
    return None if finish.added is None else finish.added.answer

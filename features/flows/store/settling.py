"""Settles flows: writes what follows from the states of their steps, in the transaction that changed them.

Every transaction that ends a step locks the flow first, then the step: ``lock``, the change, ``settle``. A worker
waits for no locked flow (``lock_free``): it ends the step a moment later. So of two
steps that end together the second sees the first, and no two transactions wait for each other. What follows is decided
by ``features.flows.store.decisions``.
"""

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any

import structlog
from sqlalchemy import Connection, RowMapping, text

from headrace.features.flows.store.decisions import Flow, FlowDecision, FlowStep, decide
from headrace.store.errors import CannotOpen
from headrace.store.jobs.claim_queries import DONE, STREAMS
from headrace.store.jobs.job_rows import Finish, encode, opened, row_of
from headrace.store.jobs.parent_part import AnnouncedStep, Settled
from headrace.store.jobs.terminal import CONCLUDED, DEAD_LETTER_CODES, ENDED, conclude
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.schema.job_states import UNSERVED_QUEUE, JobState
from headrace.store.seal import Seal

log = structlog.get_logger(__name__)

# A running row has an owner and a lease. No worker owns a flow, and its lease never runs out.
FLOW_LEASE = "'9999-01-01 00:00:00+00'"
FLOW_RUNS = f"state = 'running', owner = 'flow', lease_expires_at = {FLOW_LEASE}"

# End flows. They get the epoch of their answer, because their stream is that of this step.
_FINISH = text(f"""
WITH {DONE}, ended AS (
    UPDATE jobs SET
        state = done.state, output = done.output, error = done.error, usage = done.usage, epoch = done.epoch,
        completed_at = clock_timestamp(), owner = NULL, lease_expires_at = NULL
    FROM done WHERE jobs.id = done.id AND jobs.task = 'flow' AND jobs.state IN ('queued', 'running')
    RETURNING {ENDED}
), {STREAMS}, {CONCLUDED}
""")

_LOCK = text("""
SELECT id, tenant_id, state, cancel_requested_at IS NOT NULL AS is_cancelled, answer_id FROM jobs
WHERE id = ANY(CAST(:ids AS text[])) AND task = 'flow' ORDER BY id FOR NO KEY UPDATE
""")

_LOCK_FREE = text("""
SELECT id FROM jobs WHERE id = ANY(CAST(:ids AS text[])) AND task = 'flow' ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")

_STEPS = text("""
SELECT parent_id, id, step AS name, needs, state, queue = :unserved AS is_waiting, completed_at FROM jobs
WHERE parent_id = ANY(CAST(:ids AS text[])) ORDER BY id
""")

# Put steps into the queues of their versions. As at acceptance, a step is announced at once unless jobs of its class or
# a better one wait, or its queue is paused. Steps of the batch class are left to the dispatcher.
_READY = text("""
WITH ready AS (
    SELECT id, model || '@' || model_version AS its_queue, class_rank FROM jobs
    WHERE id = ANY(CAST(:ids AS text[])) AND state = 'queued' AND queue = :unserved
), judged AS (
    SELECT id, its_queue, class_rank < :batch_rank AND NOT EXISTS (
        SELECT FROM queue_lines AS line
        WHERE line.queue = its_queue AND line.state = 'queued' AND line.announced_at IS NULL
            AND line.class_rank <= ready.class_rank AND NOT line.is_suspect
    ) AND NOT EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = its_queue) AS is_announced
    FROM ready
)
UPDATE jobs SET queue = its_queue, announced_at = CASE WHEN is_announced THEN now() END
FROM judged WHERE jobs.id = judged.id AND jobs.state = 'queued' AND jobs.queue = :unserved
RETURNING jobs.id, jobs.queue, jobs.task, jobs.model, jobs.model_version, is_announced
""")

# The same without announcing them: the dispatcher does it, in some tenths of a second.
_READY_LATER = text("""
UPDATE jobs SET queue = model || '@' || model_version
WHERE id = ANY(CAST(:ids AS text[])) AND state = 'queued' AND queue = :unserved
""")

# Cancel queued steps, and ask the workers of running ones to stop.
_STOP = text("""
UPDATE jobs SET
    state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,
    completed_at = CASE state WHEN 'queued' THEN clock_timestamp() END,
    cancel_requested_at = COALESCE(cancel_requested_at, now())
WHERE id = ANY(CAST(:ids AS text[])) AND state IN ('queued', 'running')
RETURNING id, state
""")

_BEGIN = text(f"""
UPDATE jobs SET {FLOW_RUNS}, started_at = COALESCE(started_at, clock_timestamp())
WHERE id = ANY(CAST(:ids AS text[])) AND state = 'queued'
""")

# Note ended steps in the timelines of their flows. An attempt that nobody could note when it began is noted before.
_EVENTS = text("""
WITH ended AS (
    SELECT id, parent_id, step, state, attempt, started_at, completed_at, error -> 'code' AS code, usage FROM jobs
    WHERE id = ANY(CAST(:ids AS text[])) AND parent_id IS NOT NULL AND completed_at IS NOT NULL
), noted AS (
    SELECT ended.*, 0 AS part, 'step_started' AS kind,
        jsonb_build_object('step', step, 'job', id, 'attempt', GREATEST(attempt, 1)) AS detail
    FROM ended
    WHERE started_at IS NOT NULL AND NOT EXISTS (
        SELECT FROM job_events AS event
        WHERE event.job_id = parent_id AND event.kind = 'step_started' AND event.detail ->> 'job' = ended.id)
    UNION ALL
    SELECT ended.*, 1, 'step_finished', jsonb_strip_nulls(jsonb_build_object(
        'step', step, 'job', id, 'state', state, 'code', code, 'usage', usage))
    FROM ended
)
INSERT INTO job_events (job_id, kind, epoch, detail)
SELECT parent_id, kind, 0, detail FROM noted ORDER BY completed_at, id, part
""")

_ENDS = text("""
SELECT source.id, source.tenant_id, source.epoch, source.state, source.output, source.error, source.usage,
    stream.deltas, stream.lineage, stream.logprobs
FROM jobs AS source LEFT JOIN job_streams AS stream ON stream.job_id = source.id
WHERE source.id = ANY(CAST(:ids AS text[]))
""")

_USAGES = text("""
SELECT parent_id, usage FROM jobs
WHERE parent_id = ANY(CAST(:ids AS text[])) AND usage IS NOT NULL ORDER BY id
""")

_NOTE_USAGE = text("""
UPDATE jobs SET usage = total.usage
FROM json_to_recordset(CAST(:rows AS json)) AS total(id text, usage jsonb)
WHERE jobs.id = total.id
""")

_SUMMED = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "compute_ms")


def lock(connection: Connection, flow_ids: Collection[str]) -> None:
    """Lock these flows, in the order of their ids, before any of their steps is changed. Waits for other changes."""
    if flow_ids:
        connection.execute(_LOCK, {"ids": list(flow_ids)})


def lock_free(connection: Connection, flow_ids: Collection[str]) -> frozenset[str]:
    """Lock those of these flows that no other transaction has locked; return them. Waits for none."""
    if not flow_ids:
        return frozenset()
    return frozenset(connection.execute(_LOCK_FREE, {"ids": list(flow_ids)}).scalars())


def settle(
    connection: Connection,
    flow_ids: Collection[str],
    seal: Seal,
    *,
    ended: Collection[str] = (),
    announces: bool = True,
) -> Settled:
    """Write what follows for these locked flows.

    ``ended``: the steps that this transaction has ended, for the timelines of the flows. ``announces``: False if the
    caller sends no hints.
    """
    if not flow_ids:
        return Settled()
    flows = [_flow(row) for row in connection.execute(_LOCK, {"ids": list(flow_ids)}).mappings()]
    steps = _steps(connection, [flow.id for flow in flows])
    decided = [(flow, decide(flow, steps.get(flow.id, ()))) for flow in flows]
    cancelled, running = _stop(connection, [step_id for _, decision in decided for step_id in decision.stopped])
    announced = _move(connection, decided, announces=announces)
    if noted := [*ended, *cancelled]:
        connection.execute(_EVENTS, {"ids": noted})
    # A worker that claimed a step since the steps were read has not locked the flow, which then ends with that step.
    ending = [one for one in decided if one[1].end is not None and running.isdisjoint(one[1].stopped)]
    return Settled(_end(connection, ending, seal), announced, tuple(flow.answer_id for flow in flows))


def _flow(row: RowMapping) -> Flow:
    return Flow(**{**row, "state": JobState(row["state"])})


def _steps(connection: Connection, flow_ids: Sequence[str]) -> dict[str, list[FlowStep]]:
    found: dict[str, list[FlowStep]] = {}
    for row in connection.execute(_STEPS, {"ids": flow_ids, "unserved": UNSERVED_QUEUE}).mappings():
        values = {name: value for name, value in row.items() if name != "parent_id"}
        step = FlowStep(**{**values, "needs": tuple(row["needs"] or ()), "state": JobState(row["state"])})
        found.setdefault(row["parent_id"], []).append(step)
    return found


def _stop(connection: Connection, step_ids: Sequence[str]) -> tuple[list[str], set[str]]:
    """Stop these steps; return those that are cancelled now, and those that run and end later."""
    if not step_ids:
        return [], set()
    rows = connection.execute(_STOP, {"ids": step_ids}).all()
    cancelled = [row.id for row in rows if row.state == JobState.CANCELLED]
    conclude(connection, cancelled)
    return cancelled, {row.id for row in rows if row.state == JobState.RUNNING}


def _move(
    connection: Connection, decided: Sequence[tuple[Flow, FlowDecision]], *, announces: bool
) -> tuple[AnnouncedStep, ...]:
    announced: tuple[AnnouncedStep, ...] = ()
    ready = [step_id for _, decision in decided for step_id in decision.ready]
    if ready and not announces:
        connection.execute(_READY_LATER, {"ids": ready, "unserved": UNSERVED_QUEUE})
    elif ready:
        batch_rank = CLASS_RANKS[ServiceClass.BATCH]
        rows = connection.execute(_READY, {"ids": ready, "unserved": UNSERVED_QUEUE, "batch_rank": batch_rank})
        announced = tuple(AnnouncedStep(*row[:-1]) for row in rows if row.is_announced)
    if begun := [flow.id for flow, decision in decided if decision.has_begun and flow.state is JobState.QUEUED]:
        connection.execute(_BEGIN, {"ids": begun})
    return announced


def _end(connection: Connection, ending: Sequence[tuple[Flow, FlowDecision]], seal: Seal) -> tuple[str, ...]:
    """End these flows, each with the output and the stream of its answer."""
    if not ending:
        return ()
    wanted = {flow.answer_id for flow, _ in ending} | {found.cause.id for _, found in ending if found.cause}
    rows = connection.execute(_ENDS, {"ids": list(wanted)}).mappings().all()
    ends = {row["id"]: _opened(row, seal) for row in rows}
    usages = _usages(connection, [flow.id for flow, _ in ending])
    finishes = [_finish(flow, decision, ends, usages.get(flow.id, ())) for flow, decision in ending]
    values = {"rows": encode([row_of(finish, seal) for finish in finishes]), "dead": list(DEAD_LETTER_CODES)}
    return tuple(connection.execute(_FINISH, values).scalars())


def note_usage(connection: Connection, flow_ids: Collection[str]) -> None:
    """Write the usage of their steps into locked flows that a sweep is about to end, in its transaction."""
    if flow_ids and (usages := _usages(connection, flow_ids)):
        rows: list[dict[str, object]] = [
            {"id": flow_id, "usage": _usage(of_steps, None)} for flow_id, of_steps in usages.items()
        ]
        connection.execute(_NOTE_USAGE, {"rows": encode(rows)})


def _usages(connection: Connection, flow_ids: Collection[str]) -> dict[str, list[Mapping[str, Any]]]:
    usages: dict[str, list[Mapping[str, Any]]] = {}
    for row in connection.execute(_USAGES, {"ids": list(flow_ids)}):
        usages.setdefault(row.parent_id, []).append(row.usage)
    return usages


def _opened(row: RowMapping, seal: Seal) -> Finish | None:
    try:
        return opened(row, seal)
    except CannotOpen as error:
        log.error("step_not_opened", job_id=row["id"], error=error.message)
        return None


def _finish(
    flow: Flow, decision: FlowDecision, ends: Mapping[str, Finish | None], usages: Sequence[Mapping[str, Any]]
) -> Finish:
    answer = ends.get(flow.answer_id)
    state, cause = decision.end or JobState.FAILED, decision.cause
    error = None
    if cause is not None and state is not JobState.CANCELLED:
        error = _error(cause, ends.get(cause.id))
    if answer is None and state is JobState.SUCCEEDED:
        # Its values were encrypted with a key that this process does not have.
        state, error = JobState.FAILED, {"code": "internal_error", "message": "the answer cannot be read"}
    kept = answer if answer is not None and state is not JobState.FAILED else None
    return Finish(
        job_id=flow.id,
        epoch=0 if answer is None else answer.epoch,
        state=state,
        output=None if kept is None else kept.output,
        error=error,
        usage=_usage(usages, answer),
        deltas=() if kept is None else kept.deltas,
        lineage=() if kept is None else kept.lineage,
        logprobs=() if kept is None else kept.logprobs,
        marks=() if kept is None else kept.marks,
        tenant_id=flow.tenant_id,
    )


def _error(cause: FlowStep, end: Finish | None) -> dict[str, Any]:
    """Return the error of a flow: that of the step, with the step's name."""
    own = (None if end is None else end.error) or {"code": "internal_error", "message": "the step failed"}
    return {**own, "message": f"step {cause.name}: {own.get('message', '')}", "step": cause.name}


def _usage(usages: Sequence[Mapping[str, Any]], answer: Finish | None) -> dict[str, Any] | None:
    """Return the usage of all steps together. Times that begin at acceptance are those of the job."""
    if not usages:
        return None
    total: dict[str, Any] = {name: sum(usage.get(name) or 0 for usage in usages) for name in _SUMMED}
    total["queue_ms"] = min(usage.get("queue_ms") or 0.0 for usage in usages)
    total["first_token_ms"] = None if answer is None else (answer.usage or {}).get("first_token_ms")
    costs = [usage["cost"] for usage in usages if usage.get("cost") is not None]
    if costs:
        total["cost"] = float(sum(Decimal(str(cost)) for cost in costs))
    return total

"""Erasure of a job's contents. Its row stays with its times and counts; the usage ledger and the audit log stay too.

    input    payload, fallback, metadata, webhook URL, the items and the request of a response, the dead letter,
             the file that came with the request, the message of a Celery task
    output   output, the message of an error, deltas and checkpoints of the stream, webhook deliveries, the reasons of
             approvals
    both     its entry in the response cache

Only jobs that have ended are erased. ``store.retention.retention`` and ``store.retention.purge`` select them. The
caller removes the copy of a stream in Redis (``store.streams.stream_log.forget``).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, TextClause, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict
from headrace.store.jobs.jobs import why_missing
from headrace.store.jobs.responses import response_id
from headrace.store.schema.job_states import JobState

MIN_RETENTION_S: Final = 60.0
"""Minimum retention after a job's end, so that a waiting client can read the result."""

_LIVE_BATCH = """
    SELECT batches.id FROM batch_lines JOIN batches ON batches.id = batch_lines.batch_id
    WHERE batch_lines.job_id = jobs.id
        AND batches.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"""

NOT_IN_LIVE_BATCH = f"NOT EXISTS ({_LIVE_BATCH})"
"""Condition on ``jobs``: no unfinished batch still needs the job."""

NO_PENDING_DELIVERY = """NOT EXISTS (
    SELECT FROM webhook_deliveries AS pending WHERE pending.job_id = jobs.id AND pending.state = 'pending')"""
"""Condition on ``jobs``: no webhook delivery is pending, which may carry the output."""

# The fields of an error that are never encrypted stay (``OUTSIDE`` in ``store.seal``).
_ERROR = """jsonb_build_object(
    'code', error -> 'code', 'retryable', error -> 'retryable', 'attempt', error -> 'attempt',
    'message', 'no longer kept')"""

_INPUT_GONE = "payload = '{}', metadata = '{}', webhook = NULL, fingerprint = NULL, input_purged_at = now()"
_OUTPUT_GONE = f"output = NULL, error = CASE WHEN error IS NOT NULL THEN {_ERROR} END, output_purged_at = now()"

_BEFORE = "CASE WHEN responses.goes_on THEN 'job_' || substr(responses.previous_id, 6) END"
# Condition on ``responses``: a later response continues it. Not EXISTS: Postgres might then scan the whole table.
_IS_NEEDED = """(SELECT count(*) FROM (
    SELECT FROM responses AS later
    WHERE later.tenant_id = responses.tenant_id AND later.goes_on
        AND later.previous_id = 'resp_' || substr(responses.job_id, 5)
    LIMIT 1) AS one) > 0"""

# Parts of the statements below. Input: responses are deleted, or hidden while a later response needs their items.
_WITH_INPUT = f"""
hidden AS (
    UPDATE responses SET hidden_at = now(), request = '{{}}' FROM emptied
    WHERE responses.job_id = emptied.id AND deleted_at IS NULL AND {_IS_NEEDED}
), said AS (
    DELETE FROM responses USING emptied
    WHERE responses.job_id = emptied.id AND deleted_at IS NULL AND NOT {_IS_NEEDED}
    RETURNING responses.job_id, {_BEFORE} AS before
), unburied AS (
    DELETE FROM dead_letters USING emptied WHERE dead_letters.job_id = emptied.id
), fallbacks AS (
    DELETE FROM job_fallbacks USING emptied WHERE job_fallbacks.job_id = emptied.id
), sent AS (
    DELETE FROM files USING emptied WHERE files.job_id = emptied.id
), messages AS (
    UPDATE celery_tasks SET message = NULL, confirmed_at = COALESCE(confirmed_at, now())
    FROM emptied WHERE celery_tasks.job_id = emptied.id
)"""

_WITH_OUTPUT = """
streams AS (
    DELETE FROM job_streams USING emptied WHERE job_streams.job_id = emptied.id
), checkpoints AS (
    DELETE FROM job_checkpoints USING emptied WHERE job_checkpoints.job_id = emptied.id
), tries AS (
    UPDATE attempts SET error = jsonb_build_object('code', error -> 'code')
    FROM emptied WHERE attempts.job_id = emptied.id AND attempts.error IS NOT NULL
), answered AS (
    UPDATE tool_approvals SET reason = NULL
    FROM emptied WHERE tool_approvals.job_id = emptied.id AND tool_approvals.reason IS NOT NULL
)"""

# Erase the contents of ended jobs; with the input, return the responses before those that were deleted.
_ERASE = """
WITH emptied AS (
    UPDATE jobs SET {gone}
    WHERE id = ANY(CAST(:ids AS text[])) AND completed_at IS NOT NULL AND {kept}
    RETURNING id
), entries AS (
    DELETE FROM cache_entries USING emptied WHERE cache_entries.job_id = emptied.id
), {with_it}
SELECT id FROM emptied
"""
_ERASE_INPUT = _ERASE.replace("SELECT id FROM emptied", "SELECT id, before FROM emptied LEFT JOIN said ON job_id = id")
_INPUTS = text(_ERASE_INPUT.format(gone=_INPUT_GONE, kept="input_purged_at IS NULL", with_it=_WITH_INPUT))
_OUTPUTS = text(_ERASE.format(gone=_OUTPUT_GONE, kept="output_purged_at IS NULL", with_it=_WITH_OUTPUT))
# One update instead of two takes half the time, because a row of ``jobs`` is in many indexes.
_BOTH = text(
    _ERASE_INPUT.format(
        gone=f"{_INPUT_GONE}, {_OUTPUT_GONE}",
        kept="input_purged_at IS NULL AND output_purged_at IS NULL",
        with_it=f"{_WITH_INPUT}, {_WITH_OUTPUT}",
    )
)

# Deletes the copies of responses' items in conversations.
_COPIES = text("DELETE FROM conversation_items WHERE response_id = ANY(CAST(:ids AS text[]))")

# Deletes the webhook deliveries of jobs.
_DELIVERIES = text("DELETE FROM webhook_deliveries WHERE job_id = ANY(CAST(:ids AS text[]))")


# Erases hidden or deleted responses that no later response needs. The row of a response deleted by its owner stays.
_ERASE_UNNEEDED = text(f"""
WITH free AS (
    SELECT job_id, deleted_at IS NOT NULL AS was_deleted, {_BEFORE} AS before FROM responses
    WHERE job_id = ANY(CAST(:ids AS text[])) AND (deleted_at IS NOT NULL OR hidden_at IS NOT NULL)
        AND NOT {_IS_NEEDED}
    FOR UPDATE
), emptied AS (
    UPDATE responses SET input = '[]', goes_on = false FROM free WHERE responses.job_id = free.job_id AND was_deleted
), gone AS (
    DELETE FROM responses USING free WHERE responses.job_id = free.job_id AND NOT was_deleted
)
SELECT before FROM free WHERE before IS NOT NULL
""")

# A job's state and its unfinished batch, locked.
_JOB = text(f"""
SELECT jobs.state, input_purged_at IS NOT NULL AND output_purged_at IS NOT NULL AS is_empty,
    ({_LIVE_BATCH}) AS batch_id, parent_id
FROM jobs WHERE tenant_id = :tenant_id AND id = :job_id FOR NO KEY UPDATE OF jobs
""")


# The steps of jobs, which have no contents for longer than their jobs.
_STEPS = text("SELECT id FROM jobs WHERE parent_id = ANY(CAST(:ids AS text[]))")


def _with_steps(connection: Connection, job_ids: Iterable[str]) -> list[str]:
    ids = list(job_ids)
    return [*ids, *connection.execute(_STEPS, {"ids": ids}).scalars()] if ids else []


def erase_inputs(connection: Connection, job_ids: Iterable[str]) -> int:
    """Erase the inputs of those of these jobs that have ended. Returns the number of jobs that had inputs."""
    return _erase_with_input(connection, _INPUTS, job_ids)


def erase_outputs(connection: Connection, job_ids: Iterable[str]) -> int:
    """Erase the outputs of those of these jobs that have ended. Returns the number of jobs that had outputs."""
    return len(connection.execute(_OUTPUTS, {"ids": _with_steps(connection, job_ids)}).all())


def erase_both(connection: Connection, job_ids: Iterable[str]) -> int:
    """Erase inputs and outputs of those of these jobs that have ended and have both. Returns their number."""
    return _erase_with_input(connection, _BOTH, job_ids)


def _erase_with_input(connection: Connection, statement: TextClause, job_ids: Iterable[str]) -> int:
    rows = connection.execute(statement, {"ids": _with_steps(connection, job_ids)}).all()
    erase_unneeded_responses(connection, [row.before for row in rows if row.before is not None])
    return len(rows)


def erase_unneeded_responses(connection: Connection, job_ids: Iterable[str]) -> None:
    """Erase responses that were kept only for later ones, then the responses before them, and so on."""
    ids = set(job_ids)
    while ids:
        ids = set(connection.execute(_ERASE_UNNEEDED, {"ids": list(ids)}).scalars())


def erase(connection: Connection, job_ids: Sequence[str]) -> int:
    """Erase all contents of these jobs, their webhook deliveries, and the copies of their items in conversations.

    Returns the number of jobs that had contents.
    """
    num_both = erase_both(connection, job_ids)
    num_inputs = erase_inputs(connection, job_ids)
    num_outputs = erase_outputs(connection, job_ids)
    connection.execute(_DELIVERIES, {"ids": list(job_ids)})
    connection.execute(_COPIES, {"ids": [*map(response_id, job_ids)]})
    return num_both + max(num_inputs, num_outputs)


def purge_job(db: Database, tenant_id: str, job_id: str, *, actor: str, request_id: str | None = None) -> bool:
    """Erase an ended job on its owner's request. Returns False if it was already erased.

    Raises NotFound, Gone if the job's row was deleted too, Conflict while the job or its batch has not ended.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        row = lock_job(connection, tenant_id, job_id)
        if row is not None:
            if not JobState(row.state).is_terminal:
                raise Conflict(
                    f"job {job_id} is {row.state}: cancel it, and delete it when it has ended", code="job_not_ended"
                )
            if row.parent_id is not None:
                raise Conflict(f"job {job_id} is a step of {row.parent_id}: delete that", code="job_not_ended")
            check_batch(job_id, row.batch_id)
            erase(connection, [job_id])
            if not row.is_empty:
                record(connection, tenant_id, actor, "job.purged", job_id, {}, request_id)
    if row is None:
        raise why_missing(db, tenant_id, job_id)
    return not row.is_empty


def lock_job(connection: Connection, tenant_id: str, job_id: str) -> Row[Any] | None:
    """Lock a job to be erased and return its ``state``, ``is_empty`` (it was erased), ``batch_id`` and ``parent_id``.

    ``batch_id`` is that of a batch that has not ended. Returns None for a job that the tenant does not have.
    """
    return connection.execute(_JOB, {"tenant_id": tenant_id, "job_id": job_id}).one_or_none()


def check_batch(job_id: str, batch_id: str | None) -> None:
    """Raise Conflict for a line of a batch that has not ended."""
    if batch_id is not None:
        raise Conflict(
            f"job {job_id} is a line of {batch_id}, which has not ended: cancel that or wait for its end",
            code="job_not_ended",
        )

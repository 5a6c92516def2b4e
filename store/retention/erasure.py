"""Forgetting what a job was asked and what it answered. Its row stays, and says when, how long and how much, not what.

    input    payload, metadata, the URL to call, a response's items and request, the dead letter that could be replayed
    output   output, an error's sentence, the stream's deltas and checkpoints, deliveries of its webhooks

What the usage ledger and the audit log say of it stays too. Only jobs that have ended are emptied; when is
``store.retention.retention``'s and ``store.retention.purge``' to say. The hot copy of a stream, in Redis, is the
caller's to remove (``store.streams.stream_log.forget``).
"""

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import Connection, TextClause, text

from store.audit.audit import record
from store.db.database import Database
from store.errors import Conflict
from store.jobs.jobs import why_missing
from store.jobs.responses import not_found, response_id
from store.schema.job_states import JobState

KEPT_AT_LEAST_S: Final = 60.0
"""Whoever waits for a job's end has this long to read it, however short the tenant's retention is."""

_LIVE_BATCH = """
    SELECT batches.id FROM batch_lines JOIN batches ON batches.id = batch_lines.batch_id
    WHERE batch_lines.job_id = jobs.id
        AND batches.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"""

IS_NO_LIVE_LINE = f"NOT EXISTS ({_LIVE_BATCH})"
"""Of ``jobs``: no batch that has not ended still reads it."""

IS_TOLD = """NOT EXISTS (
    SELECT FROM webhook_deliveries AS pending WHERE pending.job_id = jobs.id AND pending.state = 'pending')"""
"""Of ``jobs``: no webhook is still to be sent, which may carry the output."""

# ``OUTSIDE`` in ``store.encryption.encrypted_columns``: of an error what is never sealed stays.
_ERROR = """jsonb_build_object(
    'code', error -> 'code', 'retryable', error -> 'retryable', 'attempt', error -> 'attempt',
    'message', 'no longer kept')"""

_INPUT_GONE = "payload = '{}', metadata = '{}', webhook = NULL, fingerprint = NULL, input_purged_at = now()"
_OUTPUT_GONE = f"output = NULL, error = CASE WHEN error IS NOT NULL THEN {_ERROR} END, output_purged_at = now()"

_BEFORE = "CASE WHEN responses.goes_on THEN 'job_' || substr(responses.previous_id, 6) END"
# Of ``responses``: a later one goes on from its items. Not EXISTS, for which Postgres might read the whole table.
_IS_NEEDED = """(SELECT count(*) FROM (
    SELECT FROM responses AS later
    WHERE later.tenant_id = responses.tenant_id AND later.goes_on
        AND later.previous_id = 'resp_' || substr(responses.job_id, 5)
    LIMIT 1) AS one) > 0"""

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
)"""

_WITH_OUTPUT = """
streams AS (
    DELETE FROM job_streams USING emptied WHERE job_streams.job_id = emptied.id
), checkpoints AS (
    DELETE FROM job_checkpoints USING emptied WHERE job_checkpoints.job_id = emptied.id
), tries AS (
    UPDATE attempts SET error = jsonb_build_object('code', error -> 'code')
    FROM emptied WHERE attempts.job_id = emptied.id AND attempts.error IS NOT NULL
)"""

_EMPTY = """
WITH emptied AS (
    UPDATE jobs SET {gone}
    WHERE id = ANY(CAST(:ids AS text[])) AND completed_at IS NOT NULL AND {kept}
    RETURNING id
), {with_it}
SELECT id FROM emptied
"""
_EMPTY_INPUT = _EMPTY.replace("SELECT id FROM emptied", "SELECT id, before FROM emptied LEFT JOIN said ON job_id = id")
_INPUTS = text(_EMPTY_INPUT.format(gone=_INPUT_GONE, kept="input_purged_at IS NULL", with_it=_WITH_INPUT))
_OUTPUTS = text(_EMPTY.format(gone=_OUTPUT_GONE, kept="output_purged_at IS NULL", with_it=_WITH_OUTPUT))
# A row of ``jobs`` is in many indexes: to write it once takes half as long as twice.
_BOTH = text(
    _EMPTY_INPUT.format(
        gone=f"{_INPUT_GONE}, {_OUTPUT_GONE}",
        kept="input_purged_at IS NULL AND output_purged_at IS NULL",
        with_it=f"{_WITH_INPUT}, {_WITH_OUTPUT}",
    )
)

_DELIVERIES = text("DELETE FROM webhook_deliveries WHERE job_id = ANY(CAST(:ids AS text[]))")


def empty_inputs(connection: Connection, job_ids: Iterable[str]) -> int:
    """Forget what these jobs were asked, of those that have ended; return how many had it until now."""
    return _empty_said(connection, _INPUTS, job_ids)


def empty_outputs(connection: Connection, job_ids: Iterable[str]) -> int:
    """Forget what these jobs answered, of those that have ended; return how many had it until now."""
    return len(connection.execute(_OUTPUTS, {"ids": list(job_ids)}).all())


def empty_both(connection: Connection, job_ids: Iterable[str]) -> int:
    """Forget what these jobs were asked and answered, of those that have ended and have both; return how many had."""
    return _empty_said(connection, _BOTH, job_ids)


def _empty_said(connection: Connection, statement: TextClause, job_ids: Iterable[str]) -> int:
    rows = connection.execute(statement, {"ids": list(job_ids)}).all()
    _let_go(connection, [row.before for row in rows if row.before is not None])
    return len(rows)


# Nobody sees these any more, and nothing goes on from them. Of what its owner deleted the row stays, to say so.
_LET_GO = text(f"""
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


def _let_go(connection: Connection, job_ids: Iterable[str]) -> None:
    """Forget what responses said that were kept only for later ones, and for theirs in turn."""
    ids = set(job_ids)
    while ids:
        ids = set(connection.execute(_LET_GO, {"ids": list(ids)}).scalars())


def empty(connection: Connection, job_ids: Sequence[str]) -> int:
    """Forget all of these jobs' contents, with the deliveries that told of them; return how many had any."""
    num_both = empty_both(connection, job_ids)
    num_inputs = empty_inputs(connection, job_ids)
    num_outputs = empty_outputs(connection, job_ids)
    connection.execute(_DELIVERIES, {"ids": list(job_ids)})
    return num_both + max(num_inputs, num_outputs)


_HELD = text(f"""
SELECT jobs.state, input_purged_at IS NOT NULL AND output_purged_at IS NOT NULL AS is_empty,
    ({_LIVE_BATCH}) AS batch_id
FROM jobs WHERE tenant_id = :tenant_id AND id = :job_id FOR NO KEY UPDATE OF jobs
""")


def purge_job(db: Database, tenant_id: str, job_id: str, *, actor: str, request_id: str | None = None) -> bool:
    """Forget a job that has ended, at its owner's word; False if it was empty already.

    Raises NotFound, Gone if even its row is no longer kept, Conflict while it runs or its batch does.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_HELD, {"tenant_id": tenant_id, "job_id": job_id}).one_or_none()
        if row is not None:
            if not JobState(row.state).is_terminal:
                raise Conflict(
                    f"job {job_id} is {row.state}: cancel it, and delete it when it has ended", code="job_not_ended"
                )
            if row.batch_id is not None:
                raise Conflict(
                    f"job {job_id} is a line of {row.batch_id}, which has not ended: cancel that or wait for its end",
                    code="job_not_ended",
                )
            empty(connection, [job_id])
            if not row.is_empty:
                record(connection, tenant_id, actor, "job.purged", job_id, {}, request_id)
    if row is None:
        raise why_missing(db, tenant_id, job_id)
    return not row.is_empty


_DELETE_RESPONSE = text("""
WITH gone AS (
    UPDATE responses SET deleted_at = now(), request = '{}'
    WHERE tenant_id = :tenant_id AND job_id = :job_id AND deleted_at IS NULL AND hidden_at IS NULL AND is_stored
    RETURNING job_id
)
UPDATE jobs SET purge_when_ended = true FROM gone WHERE jobs.id = gone.job_id
RETURNING jobs.id
""")


def delete_response(db: Database, tenant_id: str, job_id: str, *, actor: str) -> None:
    """Forget a response: what was asked, and all of its job's contents, now or when it has ended.

    Its items are kept, unseen, for later responses that go on from them.

    Raises NotFound if this tenant has none of that job.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        gone = connection.execute(_DELETE_RESPONSE, {"tenant_id": tenant_id, "job_id": job_id}).scalar_one_or_none()
        if gone is None:
            raise not_found(response_id(job_id))
        _let_go(connection, [job_id])
        empty(connection, [job_id])
        record(connection, tenant_id, actor, "response.deleted", response_id(job_id), {})

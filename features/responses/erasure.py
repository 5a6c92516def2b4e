"""How responses and conversations are erased.

With the input of its job a response is deleted, or hidden while a later response needs its items. A conversation is
kept for the shorter of inputs and outputs, counted from its last use.
"""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, text

from headrace.store.jobs.erasure import MIN_RETENTION_S, ErasurePart, PurgedRows, erasing
from headrace.store.jobs.responses import response_id

_BEFORE = "CASE WHEN responses.goes_on THEN 'job_' || substr(responses.previous_id, 6) END"
# Condition on ``responses``: a later response continues it. Not EXISTS: Postgres might then scan the whole table.
_IS_NEEDED = """(SELECT count(*) FROM (
    SELECT FROM responses AS later
    WHERE later.tenant_id = responses.tenant_id AND later.goes_on
        AND later.previous_id = 'resp_' || substr(responses.job_id, 5)
    LIMIT 1) AS one) > 0"""

# Deletes or hides responses of jobs; returns the jobs of the responses before those that were deleted.
_INPUTS = text(f"""
WITH hidden AS (
    UPDATE responses SET hidden_at = now(), request = '{{}}'
    WHERE job_id = ANY(CAST(:ids AS text[])) AND deleted_at IS NULL AND {_IS_NEEDED}
), said AS (
    DELETE FROM responses WHERE job_id = ANY(CAST(:ids AS text[])) AND deleted_at IS NULL AND NOT {_IS_NEEDED}
    RETURNING {_BEFORE} AS before
)
SELECT before FROM said WHERE before IS NOT NULL
""")

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

# The copies of responses' items in conversations.
_erase_copies = erasing("DELETE FROM conversation_items WHERE response_id = ANY(CAST(:ids AS text[]))")

# Deletes conversations that were not used for long, and to which no response will add.
_DUE_CONVERSATIONS = text("""
DELETE FROM conversations WHERE id = ANY (ARRAY(
    SELECT id FROM conversations
    WHERE tenant_id = :tenant_id AND used_at < now() - make_interval(secs => :ttl_s) AND NOT EXISTS (
        SELECT FROM responses JOIN jobs ON jobs.id = responses.job_id
        WHERE responses.tenant_id = :tenant_id AND responses.appends_to = conversations.id
            AND (jobs.completed_at IS NULL OR jobs.completed_at >= now() - make_interval(secs => :ttl_s)))
    ORDER BY used_at LIMIT :limit FOR UPDATE SKIP LOCKED))
""")


def _erase_inputs(connection: Connection, job_ids: Sequence[str]) -> None:
    erase_unneeded_responses(connection, connection.execute(_INPUTS, {"ids": list(job_ids)}).scalars())


def erase_unneeded_responses(connection: Connection, job_ids: Iterable[str]) -> None:
    """Erase responses that were kept only for later ones, then the responses before them, and so on."""
    ids = set(job_ids)
    while ids:
        ids = set(connection.execute(_ERASE_UNNEEDED, {"ids": list(ids)}).scalars())


def _sweep_conversations(connection: Connection, tenant_id: str, kept: Mapping[str, int], limit: int) -> int:
    times = [kept[kind] for kind in ("inputs_s", "outputs_s") if kind in kept]
    if not times:
        return 0
    due = {"tenant_id": tenant_id, "ttl_s": max(float(min(times)), MIN_RETENTION_S), "limit": limit}
    return connection.execute(_DUE_CONVERSATIONS, due).rowcount


# Condition on ``jobs``: a later response needs the items of this one. Those are told by their size, for which Postgres
# does not read them: `[]` has at most 8 bytes.
_NEEDS_ROW = """(
    SELECT count(*) FROM responses AS kept WHERE kept.job_id = jobs.id AND pg_column_size(kept.input) > 8) > 0"""

PART = ErasurePart(
    inputs=_erase_inputs,
    beside=lambda connection, job_ids: _erase_copies(connection, [*map(response_id, job_ids)]),
    needs_row=_NEEDS_ROW,
    sweeps={"num_conversations": _sweep_conversations},
    purges=(PurgedRows("conversations"),),
)

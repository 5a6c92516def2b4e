"""How batches are erased: their lines in steps, then what they say themselves. Their rows stay for a while.

An unfinished batch needs the contents of its jobs.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, text

from headrace.store.jobs.erasure import MIN_RETENTION_S, ErasurePart, PurgedRows

_OVER = "purged_at IS NULL AND status IN ('failed', 'completed', 'expired', 'cancelled')"

# Batches with expired outputs.
_DUE = text(f"""
SELECT id FROM batches
WHERE tenant_id = :tenant_id AND {_OVER}
    AND COALESCE(completed_at, failed_at, expired_at, cancelled_at) < now() - make_interval(secs => :ttl_s)
ORDER BY id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")

# The next batch to purge.
_NEXT = text(f"""
SELECT id FROM batches
WHERE tenant_id = :tenant_id AND (CAST(:before AS timestamptz) IS NULL OR created_at < :before) AND {_OVER}
ORDER BY id LIMIT 1 FOR NO KEY UPDATE
""")

# Deletes lines of batches.
_LINES = text("""
DELETE FROM batch_lines WHERE (batch_id, line) IN (
    SELECT batch_id, line FROM batch_lines WHERE batch_id = ANY(CAST(:ids AS text[])) LIMIT :limit)
""")

# Erases the contents of batches that have no lines left.
_ERASE = text("""
UPDATE batches SET metadata = NULL, errors = NULL, fingerprint = NULL, purged_at = now()
WHERE id = ANY(CAST(:ids AS text[]))
    AND NOT EXISTS (SELECT FROM batch_lines WHERE batch_lines.batch_id = batches.id)
""")

# Deletes old batches that were erased, with their idempotency keys.
_OLD = """
WITH old AS (
    SELECT id FROM batches
    WHERE purged_at IS NOT NULL
        AND COALESCE(completed_at, failed_at, expired_at, cancelled_at) < now() - make_interval(secs => :ttl_s)
    ORDER BY purged_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
DELETE FROM batches USING old WHERE batches.id = old.id
"""


def _erase(connection: Connection, batch_ids: Iterable[str], limit: int) -> int:
    """Erase the contents of ended batches, except their files, at most ``limit`` lines. Returns the number of rows."""
    ids = list(batch_ids)
    num_lines = connection.execute(_LINES, {"ids": ids, "limit": limit}).rowcount if ids else 0
    return num_lines + (connection.execute(_ERASE, {"ids": ids}).rowcount if ids else 0)


def _sweep(connection: Connection, tenant_id: str, kept: Mapping[str, int], limit: int) -> int:
    if "outputs_s" not in kept:
        return 0
    due = {"tenant_id": tenant_id, "ttl_s": max(float(kept["outputs_s"]), MIN_RETENTION_S), "limit": limit}
    return _erase(connection, connection.execute(_DUE, due).scalars(), limit)


def _purge(connection: Connection, values: Mapping[str, Any]) -> tuple[int, bool]:
    ids = list(connection.execute(_NEXT, values).scalars())
    num_rows = _erase(connection, ids, values["limit"])
    return int(bool(ids) and num_rows < values["limit"]), bool(ids)


PART = ErasurePart(
    needed_by="""SELECT batches.id FROM batch_lines JOIN batches ON batches.id = batch_lines.batch_id
    WHERE batch_lines.job_id = jobs.id
        AND batches.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')""",
    sweeps={"num_batch_rows": _sweep},
    purges=(PurgedRows("batches", _OVER, _purge),),
    old_rows=_OLD,
)

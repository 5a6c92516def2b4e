"""Batches: create, read, list, cancel and delete. Every statement is bound to one tenant.

The state transitions of a running batch are in ``features.batches.batch_steps``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from headrace.features.files.files import IS_KEPT, File
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, IdempotencyKeyReused, NotFound, RateLimited
from headrace.store.ids import new_id
from headrace.store.json_text import dump_json
from headrace.store.schema.batch_states import NEXT, BatchStatus
from headrace.store.seal import Seal, SealContext, open_columns
from headrace.store.tenants.quotas import NUM_LIVE_BATCHES
from headrace.store.tenants.tenant_limits import RequestLimits


@dataclass(frozen=True, slots=True)
class Batch:
    """A row of ``batches``. ``next_line`` and ``next_offset``: the first line of the input without a job yet.

    ``model_versions``: the version of each model string of the lines, as ``name@3``. None before the start of the
    batch.
    """

    id: str
    tenant_id: str
    status: BatchStatus
    url: str
    input_file_id: str
    input_digest: str | None
    api_key_id: str
    project_id: str | None
    completion_window: str
    metadata: dict[str, str] | None
    output_ttl_s: int | None
    fingerprint: str | None
    model: str | None
    model_versions: dict[str, str] | None
    errors: list[dict[str, Any]] | None
    next_line: int
    next_offset: int
    num_total: int
    num_completed: int
    num_failed: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    output_file_id: str | None
    error_file_id: str | None
    created_at: datetime
    in_progress_at: datetime | None
    expires_at: datetime
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelling_at: datetime | None
    cancelled_at: datetime | None
    purged_at: datetime | None
    traceparent: str | None
    start_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewBatch:
    """The request for a batch. Only the first of ``fingerprints`` is stored.

    The usage is counted for ``api_key_id`` and ``project_id``. ``limits`` are the limits of the tenant and of the key.
    ``traceparent``: the span of the request, if it is traced. ``window_s`` counts from now or from ``start_after``.
    """

    url: str
    completion_window: str
    window_s: float
    metadata: dict[str, str] | None
    output_ttl_s: int | None
    fingerprints: Sequence[str]
    idempotency_key: str | None
    api_key_id: str
    project_id: str | None
    limits: RequestLimits = field(default_factory=RequestLimits)
    traceparent: str | None = None
    start_after: datetime | None = None


COLUMNS = ", ".join(Batch.__slots__)

# Stores a batch if its input file exists and its idempotency key is new.
_INSERT = text(f"""
WITH kept AS ({IS_KEPT})
INSERT INTO batches (
    id, tenant_id, url, input_file_id, input_digest, completion_window, metadata, output_ttl_s, fingerprint,
    idempotency_key, api_key_id, project_id, traceparent, start_after, expires_at)
SELECT
    :id, :tenant_id, :url, :file_id, digest, :completion_window, CAST(:metadata AS jsonb), :output_ttl_s,
    :fingerprint, :idempotency_key, :api_key_id, :project_id, :traceparent, :start_after,
    GREATEST(now(), CAST(:start_after AS timestamptz)) + make_interval(secs => :window_s)
FROM kept
ON CONFLICT (tenant_id, idempotency_key) DO NOTHING
RETURNING {COLUMNS}
""")

# The batch of an idempotency key.
_OF_KEY = text(f"SELECT {COLUMNS} FROM batches WHERE tenant_id = :tenant_id AND idempotency_key = :idempotency_key")


# Locks the tenant's number of batches for the transaction.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('headrace.batches:' || :tenant_id, 0))")

_FULL_RETRY_S = 10.0
# Jobs that a transaction marks while a batch is deleted.
_DELETE_STEP = 1_000


# The newest recent batch with one of the fingerprints that was not cancelled.
_DUPLICATE = text(f"""
SELECT {COLUMNS} FROM batches
WHERE tenant_id = :tenant_id AND fingerprint = ANY(CAST(:fingerprints AS text[]))
    AND created_at > now() - make_interval(secs => :within_s) AND cancelling_at IS NULL
ORDER BY id DESC LIMIT 1
""")

# One batch.
_GET = text(f"SELECT {COLUMNS} FROM batches WHERE tenant_id = :tenant_id AND id = :id")

_LIST = f"""
SELECT {COLUMNS} FROM batches
WHERE tenant_id = :tenant_id AND (CAST(:url AS text) IS NULL OR (url = :url AND purged_at IS NULL))
    AND (CAST(:cursor AS text) IS NULL OR id {{past}} :cursor)
ORDER BY id {{order}} LIMIT :limit
"""

# A page of batches, newest first, or those that come before a batch in that order.
_PAGE_AFTER = text(_LIST.format(past="<", order="DESC"))
_PAGE_BEFORE = text(_LIST.format(past=">", order="ASC"))

# The number of lines of batches by outcome.
_OUTCOMES = text("""
SELECT batch_id, outcome, count(*) AS num_lines FROM batch_lines
WHERE batch_id = ANY(CAST(:ids AS text[])) AND outcome IS NOT NULL GROUP BY batch_id, outcome
""")

# Erases the contents of some of the batch's jobs, soon. Returns their number.
_ERASE_JOBS = text("""
UPDATE jobs SET purge_when_ended = true WHERE id = ANY (ARRAY(
    SELECT jobs.id FROM batch_lines JOIN jobs ON jobs.id = batch_lines.job_id
    WHERE batch_lines.batch_id = :id AND NOT purge_when_ended LIMIT :limit))
""")

_DELETE_FILES = text("DELETE FROM files WHERE tenant_id = :tenant_id AND id = ANY(CAST(:ids AS text[]))")

# Erases the contents of a batch. The dispatcher deletes the row and its lines later, as after the retention time.
_ERASE = text("""
UPDATE batches SET metadata = NULL, errors = NULL, fingerprint = NULL, idempotency_key = NULL, purged_at = now()
WHERE tenant_id = :tenant_id AND id = :id
""")

# Requests the cancellation of a batch that can be cancelled.
_CANCEL = text("""
UPDATE batches SET status = 'cancelling', cancelling_at = now()
WHERE tenant_id = :tenant_id AND id = :id AND status = ANY(CAST(:from AS text[]))
""")


def create(db: Database, tenant_id: str, new: NewBatch, file: File) -> Batch:
    """Store the batch, or return the batch that has the same idempotency key.

    Raises RateLimited if the limit of live batches is reached, IdempotencyKeyReused if that key was used with another
    body, NotFound if the file was deleted.
    """
    batch_id = new_id("batch")
    metadata = db.seal.seal(new.metadata, SealContext(tenant_id, "batches", "metadata", batch_id))
    values = {
        "id": batch_id,
        "tenant_id": tenant_id,
        "url": new.url,
        "file_id": file.id,
        "digest": file.digest,
        "completion_window": new.completion_window,
        "metadata": None if metadata is None else dump_json(metadata),
        "output_ttl_s": new.output_ttl_s,
        "fingerprint": new.fingerprints[0],
        "idempotency_key": new.idempotency_key,
        "api_key_id": new.api_key_id,
        "project_id": new.project_id,
        "traceparent": new.traceparent,
        "window_s": new.window_s,
        "start_after": new.start_after,
    }
    with db.begin(tenant_id=tenant_id) as connection:
        connection.execute(_LOCK, values)
        row = connection.execute(_INSERT, values).mappings().one_or_none()
        if row is not None:
            _check_live(connection, tenant_id, new)
        row = row or connection.execute(_OF_KEY, values).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no file {file.id}")
    batch = from_row(row, db.seal)
    if batch.fingerprint not in new.fingerprints:
        raise IdempotencyKeyReused(
            "this Idempotency-Key was used before with a different body", param="Idempotency-Key"
        )
    return batch


def _check_live(connection: Connection, tenant_id: str, new: NewBatch) -> None:
    """Raise RateLimited if the batch that was just stored is over a limit."""
    found = connection.execute(NUM_LIVE_BATCHES, {"tenant_id": tenant_id, "api_key_id": new.api_key_id}).one()
    for owner, num, limits in (
        ("this key", found.of_key, new.limits.key),
        ("your organization", found.of_tenant, new.limits.tenant),
    ):
        if limits.live_batches is not None and num > limits.live_batches:
            raise RateLimited(
                f"{owner} has {num - 1} batches that have not ended, and {limits.live_batches} is the limit: put more"
                " lines into one batch, or try again when one has ended",
                retry_after_s=_FULL_RETRY_S,
            )


def is_known(db: Database, tenant_id: str, idempotency_key: str) -> bool:
    """Return True if a batch has this idempotency key."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        found = connection.execute(_OF_KEY, {"tenant_id": tenant_id, "idempotency_key": idempotency_key})
        return found.first() is not None


def find_duplicate(db: Database, tenant_id: str, fingerprints: Sequence[str], within_s: float) -> Batch | None:
    """Return the newest batch with one of these fingerprints, not cancelled, of the last ``within_s`` seconds."""
    values = {"tenant_id": tenant_id, "fingerprints": list(fingerprints), "within_s": within_s}
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_DUPLICATE, values).mappings().one_or_none()
    return None if row is None else from_row(row, db.seal)


def get(db: Database, tenant_id: str, batch_id: str) -> Batch:
    """Return the batch. Raises NotFound if this tenant has no batch with that id."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return _get(connection, db.seal, tenant_id, batch_id)


def _get(connection: Connection, seal: Seal, tenant_id: str, batch_id: str) -> Batch:
    row = connection.execute(_GET, {"tenant_id": tenant_id, "id": batch_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no batch {batch_id}")
    return from_row(row, seal)


def list_batches(
    db: Database,
    tenant_id: str,
    *,
    limit: int,
    after: str | None = None,
    before: str | None = None,
    url: str | None = None,
) -> Sequence[Batch]:
    """Return at most ``limit`` batches, newest first, that follow ``after`` directly, or precede ``before``.

    ``url``: only batches of this route, and none that was deleted.
    """
    values = {"tenant_id": tenant_id, "limit": limit, "url": url, "cursor": after if before is None else before}
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_PAGE_AFTER if before is None else _PAGE_BEFORE, values).mappings()
        found = [from_row(row, db.seal) for row in rows]
    return found if before is None else found[::-1]


def count_outcomes(db: Database, tenant_id: str, batch_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
    """Return for each batch the number of its lines by outcome: a state of ended jobs, or ``refused``."""
    counts: dict[str, dict[str, int]] = {batch_id: {} for batch_id in batch_ids}
    with db.autocommit(tenant_id=tenant_id) as connection:
        for row in connection.execute(_OUTCOMES, {"ids": list(batch_ids)}):
            counts[row.batch_id][row.outcome] = row.num_lines
    return counts


def delete(db: Database, tenant_id: str, batch_id: str, *, actor: str) -> None:
    """Delete an ended batch with its files. The contents of its jobs are erased soon; rows stay for a while.

    The jobs are marked in steps, so that no other transaction waits long. If a step fails the batch is still there, and
    a second call goes on. Raises NotFound, or Conflict if the batch has not ended.
    """
    num_marked = 1
    while num_marked:
        with db.begin(tenant_id=tenant_id) as connection:
            batch = _get(connection, db.seal, tenant_id, batch_id)
            if not batch.status.is_terminal:
                raise Conflict(f"batch {batch_id} is {batch.status}: cancel it, and delete it when it has ended")
            num_marked = connection.execute(_ERASE_JOBS, {"id": batch_id, "limit": _DELETE_STEP}).rowcount
    with db.begin(tenant_id=tenant_id) as connection:
        ids = [each for each in (batch.input_file_id, batch.output_file_id, batch.error_file_id) if each is not None]
        connection.execute(_DELETE_FILES, {"tenant_id": tenant_id, "ids": ids})
        connection.execute(_ERASE, {"tenant_id": tenant_id, "id": batch_id})
        record(connection, tenant_id, actor, "batch.deleted", batch_id, {"url": batch.url})


_MAY_BE_CANCELLED = [str(status) for status, following in NEXT.items() if BatchStatus.CANCELLING in following]


def request_cancel(db: Database, tenant_id: str, batch_id: str) -> Batch:
    """Request the cancellation of a batch: no more lines start, unfinished jobs are cancelled, results are published.

    Raises NotFound, or Conflict if the batch cannot be cancelled any more.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        connection.execute(_CANCEL, {"tenant_id": tenant_id, "id": batch_id, "from": _MAY_BE_CANCELLED})
        batch = _get(connection, db.seal, tenant_id, batch_id)
    if batch.status is not BatchStatus.CANCELLING:
        raise Conflict(
            f"batch {batch_id} is {batch.status} and cannot be cancelled any more", code="batch_not_cancellable"
        )
    return batch


def from_row(row: RowMapping, seal: Seal) -> Batch:
    """Return the batch in a row with ``COLUMNS``, decrypted."""
    opened = open_columns(seal, SealContext(row["tenant_id"], "batches", "", row["id"]), row, "metadata", "errors")
    return Batch(**{**{name: opened[name] for name in Batch.__slots__}, "status": BatchStatus(row["status"])})

"""The files of vector stores, and batches of them.

To add a file takes three steps: the attachment, the job that reads the file, and the job's id in the attachment. A
process may die between them: a job whose attachment lacks its id writes its passages by the ticket, and an attachment
without a job has failed after ``file_status.LOST_AFTER_S``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, text

from headrace.features.retrieval.vector_stores import IS_CURRENT, STATUS, STATUS_JOIN, not_found
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import NotFound
from headrace.store.ids import new_id
from headrace.store.json_text import dump_json
from headrace.store.seal import Seal, SealContext

STATUSES = ("in_progress", "completed", "failed", "cancelled")
Attributes = Mapping[str, str | float | bool]


@dataclass(frozen=True, slots=True)
class NewStoreFile:
    """A file to add. ``chunk_tokens``, ``overlap_tokens``: see ``features.retrieval.ingest_order``."""

    file_id: str
    attributes: Attributes
    chunk_tokens: int
    overlap_tokens: int


@dataclass(frozen=True, slots=True)
class StoreFile:
    """A file in a store. ``error``: of its job, if that failed. ``ticket``: see ``features.retrieval.tables``."""

    store_id: str
    file_id: str
    tenant_id: str
    ticket: str
    job_id: str | None
    status: str
    num_passages: int
    num_bytes: int
    attributes: dict[str, Any]
    chunk_tokens: int
    overlap_tokens: int
    created_at: datetime
    filename: str
    file_bytes: int
    error: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Files that were added together. ``num_files``: by status."""

    id: str
    store_id: str
    created_at: datetime
    cancelled_at: datetime | None
    num_files: dict[str, int]


_SELECT = f"""
SELECT attached.store_id, attached.file_id, attached.tenant_id, attached.ticket, attached.job_id, {STATUS} AS status,
    attached.num_passages, attached.num_bytes, attached.attributes, attached.chunk_tokens, attached.overlap_tokens,
    attached.created_at, files.filename, files.num_bytes AS file_bytes, jobs.error
FROM vector_store_files AS attached
JOIN files ON files.tenant_id = attached.tenant_id AND files.id = attached.file_id {STATUS_JOIN}
WHERE attached.tenant_id = :tenant_id AND attached.store_id = :store_id
"""

_LOCK_STORE = text(f"SELECT id FROM vector_stores WHERE id = :store_id AND {IS_CURRENT} FOR NO KEY UPDATE")

_DETACH = text("""
DELETE FROM vector_store_files
WHERE tenant_id = :tenant_id AND store_id = :store_id AND file_id = ANY(CAST(:file_ids AS text[]))
RETURNING job_id
""")

# Files of the tenant only; expired ones are left out.
_ATTACH = text("""
INSERT INTO vector_store_files (
    store_id, file_id, tenant_id, ticket, batch_id, attributes, chunk_tokens, overlap_tokens)
SELECT :store_id, files.id, files.tenant_id, :ticket, :batch_id, CAST(:attributes AS jsonb), :chunk_tokens,
    :overlap_tokens
FROM files
WHERE files.tenant_id = :tenant_id AND files.id = :file_id AND (expires_at IS NULL OR expires_at > now())
RETURNING file_id
""")

_ADD_BATCH = text("INSERT INTO vector_store_batches (id, tenant_id, store_id) VALUES (:id, :tenant_id, :store_id)")

_NOTE_JOBS = text("""
UPDATE vector_store_files AS attached SET job_id = made.job_id
FROM unnest(CAST(:tickets AS text[]), CAST(:job_ids AS text[])) AS made(ticket, job_id)
WHERE attached.tenant_id = :tenant_id AND attached.ticket = made.ticket
""")

_OF_FILE = text(f"{_SELECT} AND attached.file_id = :file_id")

_LIST = """{select} AND (CAST(:batch_id AS text) IS NULL OR attached.batch_id = :batch_id)
    AND (CAST(:status AS text) IS NULL OR {status} = :status)
    AND (CAST(:after AS text) IS NULL OR attached.ticket {past} (
        SELECT ticket FROM vector_store_files AS mark
        WHERE mark.tenant_id = :tenant_id AND mark.store_id = :store_id AND mark.file_id = :after))
    AND (CAST(:before AS text) IS NULL OR attached.ticket {ahead} (
        SELECT ticket FROM vector_store_files AS mark
        WHERE mark.tenant_id = :tenant_id AND mark.store_id = :store_id AND mark.file_id = :before))
ORDER BY attached.ticket {order} LIMIT :limit
"""
_NEWEST_FIRST = text(_LIST.format(select=_SELECT, status=STATUS, past="<", ahead=">", order="DESC"))
_OLDEST_FIRST = text(_LIST.format(select=_SELECT, status=STATUS, past=">", ahead="<", order="ASC"))

_SET_ATTRIBUTES = text("""
UPDATE vector_store_files SET attributes = CAST(:attributes AS jsonb)
WHERE tenant_id = :tenant_id AND store_id = :store_id AND file_id = :file_id
RETURNING file_id
""")

_BATCH = text(f"""
SELECT batch.id, batch.store_id, batch.created_at, batch.cancelled_at, COALESCE((
    SELECT jsonb_object_agg(counted.status, counted.num) FROM (
        SELECT {STATUS} AS status, count(*) AS num FROM vector_store_files AS attached {STATUS_JOIN}
        WHERE attached.tenant_id = :tenant_id AND attached.batch_id = :id GROUP BY 1
    ) AS counted), '{{}}') AS num_files
FROM vector_store_batches AS batch
WHERE batch.tenant_id = :tenant_id AND batch.store_id = :store_id AND batch.id = :id
""")

_CANCEL_BATCH = text("""
UPDATE vector_store_batches SET cancelled_at = COALESCE(cancelled_at, now())
WHERE tenant_id = :tenant_id AND store_id = :store_id AND id = :id RETURNING id
""")

_OPEN_JOBS = text("""
SELECT jobs.id FROM vector_store_files AS attached
JOIN jobs ON jobs.tenant_id = attached.tenant_id AND jobs.id = attached.job_id
WHERE attached.tenant_id = :tenant_id AND attached.batch_id = :id AND jobs.state IN ('queued', 'running')
""")


def attach(
    db: Database, tenant_id: str, store_id: str, new: Sequence[NewStoreFile], *, as_batch: bool = False
) -> tuple[list[StoreFile], str | None]:
    """Add files to a store, all or none; a file that is there already is taken away first, with its passages.

    Returns the files, without jobs yet, and the id of their batch if ``as_batch``. Raises NotFound for a store or a
    file that the tenant does not have.
    """
    values: dict[str, Any] = {"tenant_id": tenant_id, "store_id": store_id, "batch_id": None}
    with db.begin(tenant_id=tenant_id) as connection:
        if connection.execute(_LOCK_STORE, values).one_or_none() is None:
            raise not_found(store_id)
        if as_batch:
            values["batch_id"] = new_id("vsfb")
            connection.execute(_ADD_BATCH, values | {"id": values["batch_id"]})
        connection.execute(_DETACH, values | {"file_ids": [one.file_id for one in new]})
        for one in new:
            row = values | {
                "file_id": one.file_id,
                "ticket": new_id("vsf"),
                "attributes": dump_json(dict(one.attributes)),
                "chunk_tokens": one.chunk_tokens,
                "overlap_tokens": one.overlap_tokens,
            }
            if connection.execute(_ATTACH, row).one_or_none() is None:
                raise NotFound(f"no file {one.file_id[:80]}", param="file_id")
        rows = (
            connection.execute(
                text(f"{_SELECT} AND attached.file_id = ANY(CAST(:file_ids AS text[]))"),
                values | {"file_ids": [one.file_id for one in new]},
            )
            .mappings()
            .all()
        )
    return [_store_file(row, db.seal) for row in rows], values["batch_id"]


def note_jobs(db: Database, tenant_id: str, jobs: Mapping[str, str]) -> None:
    """Note the jobs that read attached files, by the tickets of these."""
    values = {"tenant_id": tenant_id, "tickets": list(jobs), "job_ids": list(jobs.values())}
    with db.autocommit(tenant_id=tenant_id) as connection:
        connection.execute(_NOTE_JOBS, values)


def get(db: Database, tenant_id: str, store_id: str, file_id: str) -> StoreFile:
    """Return a file of a store. Raises NotFound."""
    values = {"tenant_id": tenant_id, "store_id": store_id, "file_id": file_id}
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_OF_FILE, values).mappings().one_or_none()
    if row is None:
        raise _no_file(store_id, file_id)
    return _store_file(row, db.seal)


def list_files(
    db: Database,
    tenant_id: str,
    store_id: str,
    *,
    limit: int,
    batch_id: str | None = None,
    status: str | None = None,
    after: str | None = None,
    before: str | None = None,
    descending: bool = True,
) -> list[StoreFile]:
    """Return at most ``limit`` files of a store or of a batch, by age, between two file ids."""
    values: dict[str, Any] = {"tenant_id": tenant_id, "store_id": store_id, "batch_id": batch_id, "status": status}
    values |= {"after": after, "before": before, "limit": limit}
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_NEWEST_FIRST if descending else _OLDEST_FIRST, values).mappings().all()
    return [_store_file(row, db.seal) for row in rows]


def set_attributes(db: Database, tenant_id: str, store_id: str, file_id: str, attributes: Attributes) -> StoreFile:
    """Replace the attributes of a file. Raises NotFound."""
    values = {"tenant_id": tenant_id, "store_id": store_id, "file_id": file_id}
    with db.begin(tenant_id=tenant_id) as connection:
        changed = values | {"attributes": dump_json(dict(attributes))}
        if connection.execute(_SET_ATTRIBUTES, changed).one_or_none() is None:
            raise _no_file(store_id, file_id)
    return get(db, tenant_id, store_id, file_id)


def detach(db: Database, tenant_id: str, store_id: str, file_id: str, *, actor: str) -> str | None:
    """Take a file out of a store, with its passages; the file itself stays. Returns its job. Raises NotFound."""
    values = {"tenant_id": tenant_id, "store_id": store_id, "file_ids": [file_id]}
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_DETACH, values).one_or_none()
        if row is None:
            raise _no_file(store_id, file_id)
        record(connection, tenant_id, actor, "vector_store.file_removed", store_id, {"file_id": file_id})
    job_id: str | None = row.job_id
    return job_id


def get_batch(db: Database, tenant_id: str, store_id: str, batch_id: str) -> FileBatch:
    """Return a batch. Raises NotFound."""
    values = {"tenant_id": tenant_id, "store_id": store_id, "id": batch_id}
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_BATCH, values).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no batch {batch_id[:80]} of files in the vector store {store_id[:80]}")
    return FileBatch(**row)


def cancel_batch(db: Database, tenant_id: str, store_id: str, batch_id: str) -> list[str]:
    """Note that a batch is cancelled; return its open jobs, which the caller cancels. Raises NotFound."""
    values = {"tenant_id": tenant_id, "store_id": store_id, "id": batch_id}
    with db.begin(tenant_id=tenant_id) as connection:
        if connection.execute(_CANCEL_BATCH, values).one_or_none() is None:
            raise NotFound(f"no batch {batch_id[:80]} of files in the vector store {store_id[:80]}")
        return list(connection.execute(_OPEN_JOBS, values).scalars())


def _no_file(store_id: str, file_id: str) -> NotFound:
    return NotFound(f"no file {file_id[:80]} in the vector store {store_id[:80]}")


def _store_file(row: RowMapping, seal: Seal) -> StoreFile:
    error = row["error"]
    if row["job_id"] is not None and error is not None:
        error = seal.open(error, SealContext(row["tenant_id"], "jobs", "error", row["job_id"]))
    return StoreFile(**{**row, "error": error})

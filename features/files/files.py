"""Files of a tenant: names for contents in the blob storage. Several files, also of several tenants, may share one.

A content is removed only if nothing refers to it. A new reference takes three steps, and a process may die after each:
touch the row of the content, store the content, write the reference. ``remove_unreferenced`` marks contents that were
not touched for longer than these steps can take. A marked content gets no new references and is then removed. The
removal may be late or repeated, because names are not reused: the same content gets another name afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, RowMapping, text

from headrace.features.files.blob_storage import Blobs, BlobWriter
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import NotFound, QuotaExceeded, Unavailable
from headrace.store.ids import new_id

UNREFERENCED_S = 600.0
"""A content without references is removed if it was not touched for this long."""


class Purpose(StrEnum):
    """Purpose of a file. Only Headrace creates ``batch_output`` and ``job_output``."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"
    USER_DATA = "user_data"
    ASSISTANTS = "assistants"
    ASSISTANTS_OUTPUT = "assistants_output"
    VISION = "vision"
    FINE_TUNE = "fine-tune"
    FINE_TUNE_RESULTS = "fine-tune-results"
    EVALS = "evals"
    JOB_OUTPUT = "job_output"


UPLOADED = frozenset(
    {Purpose.BATCH, Purpose.USER_DATA, Purpose.ASSISTANTS, Purpose.VISION, Purpose.FINE_TUNE, Purpose.EVALS}
)
"""The purposes that an upload may have."""


@dataclass(frozen=True, slots=True)
class File:
    """A file, and the name of its content."""

    id: str
    tenant_id: str
    digest: str
    num_bytes: int
    filename: str
    purpose: Purpose
    created_at: datetime
    expires_at: datetime | None


COLUMNS = "id, tenant_id, digest, num_bytes, filename, purpose, created_at, expires_at"
IS_CURRENT = "tenant_id = :tenant_id AND (expires_at IS NULL OR expires_at > now())"

# Touches the row of an equal content, or adds one. Waits for a removal that has locked the row.
_TOUCH = text("""
WITH found AS (
    UPDATE blobs SET touched_at = now()
    WHERE removed_at IS NULL AND digest = (
        SELECT digest FROM blobs
        WHERE split_part(digest, '.', 1) = :sha256 AND removed_at IS NULL ORDER BY digest LIMIT 1)
    RETURNING digest
), made AS (
    INSERT INTO blobs (digest, num_bytes) SELECT :name, :num_bytes WHERE NOT EXISTS (SELECT FROM found)
    RETURNING digest
)
SELECT digest FROM found UNION ALL SELECT digest FROM made
""")


IS_KEPT = "SELECT digest FROM blobs WHERE digest = :digest AND removed_at IS NULL FOR SHARE"
"""Finds a content that is not marked for removal, and locks it against removal for the transaction."""

# Adds a file, if its content is not marked for removal.
_INSERT = text(f"""
WITH kept AS ({IS_KEPT})
INSERT INTO files (id, tenant_id, digest, num_bytes, filename, purpose, expires_at)
SELECT
    :id, :tenant_id, digest, :num_bytes, :filename, :purpose, now() + make_interval(secs => CAST(:ttl_s AS float8))
FROM kept
RETURNING {COLUMNS}
""")

# Locks the tenant's files for the transaction, so that those that are added at the same time are counted.
_LOCK_FILES = text("SELECT pg_advisory_xact_lock(hashtextextended('headrace.files ' || :tenant_id, 0))")

# Size of the tenant's files, and of the parts that will be files.
_STORED = text(f"""
SELECT CAST(
    (SELECT coalesce(sum(num_bytes), 0) FROM files WHERE {IS_CURRENT})
    + (SELECT coalesce(sum(num_bytes), 0) FROM upload_parts WHERE tenant_id = :tenant_id) AS bigint)
""")

# One file that has not expired.
_GET = text(f"SELECT {COLUMNS} FROM files WHERE id = :id AND {IS_CURRENT}")

# A page of files.
_LIST = """
SELECT {columns} FROM files
WHERE {is_there} AND (CAST(:purpose AS text) IS NULL OR purpose = :purpose)
    AND (CAST(:after AS text) IS NULL OR id {past} :after)
ORDER BY id {order} LIMIT :limit
"""

# Deletes a file.
_DELETE = text("DELETE FROM files WHERE id = :id AND tenant_id = :tenant_id RETURNING purpose")

# Notes the job that a file goes with.
_GIVE = text("UPDATE files SET job_id = :job_id WHERE id = :id AND tenant_id = :tenant_id")

# Deletes expired files.
_EXPIRE = text("""
DELETE FROM expired_files WHERE id IN (SELECT id FROM expired_files ORDER BY expires_at LIMIT :limit)
""")

# Locks contents without references. ``_MARK`` checks the references again after the lock, because one may have been
# written before it; that transaction holds the row until its reference is visible.
_UNREFERENCED = text("""
SELECT digest FROM blobs
WHERE removed_at IS NULL AND touched_at < now() - make_interval(secs => :older_than_s)
    AND NOT EXISTS (SELECT FROM blob_references AS referring WHERE referring.digest = blobs.digest)
ORDER BY touched_at LIMIT :limit FOR UPDATE SKIP LOCKED
""")

# Marks contents for removal.
_MARK = text("""
UPDATE blobs SET removed_at = now()
WHERE digest = ANY(CAST(:digests AS text[]))
    AND NOT EXISTS (SELECT FROM blob_references AS referring WHERE referring.digest = blobs.digest)
""")

# Marked contents.
_MARKED = text("SELECT digest FROM blobs WHERE removed_at IS NOT NULL ORDER BY removed_at LIMIT :limit")

# Delete the references of ended batches to a removed content, and its row.
_DELETE_INPUTS = text("UPDATE ended_inputs SET input_digest = NULL WHERE input_digest = :digest")

_DELETE_CONTENT = text("DELETE FROM blobs WHERE digest = :digest")


_NEWEST_FIRST = text(_LIST.format(columns=COLUMNS, is_there=IS_CURRENT, past="<", order="DESC"))

_OLDEST_FIRST = text(_LIST.format(columns=COLUMNS, is_there=IS_CURRENT, past=">", order="ASC"))


def keep_content(db: Database, draft: BlobWriter) -> None:
    """Store a content. A reference must be written within ``UNREFERENCED_S``. Raises Unavailable."""
    name = f"{draft.digest}.{uuid4().hex[:12]}"
    values = {"sha256": draft.digest, "name": name, "num_bytes": draft.num_bytes}
    with db.autocommit() as connection:
        name = connection.execute(_TOUCH, values).scalar_one()
    draft.keep(name)


def add(
    connection: Connection,
    tenant_id: str,
    draft: BlobWriter,
    *,
    filename: str,
    purpose: Purpose,
    ttl_s: float | None = None,
) -> File:
    """Add a file for a stored content in the caller's transaction. The file expires in ``ttl_s`` seconds.

    Raises Unavailable if the content was removed meanwhile.
    """
    values = {
        "id": new_id("file"),
        "tenant_id": tenant_id,
        "digest": draft.name,
        "num_bytes": draft.num_bytes,
        "filename": filename,
        "purpose": purpose,
        "ttl_s": ttl_s,
    }
    row = connection.execute(_INSERT, values).mappings().one_or_none()
    if row is None:
        raise Unavailable("the content was removed before its file was made: send it again", code="storage_unavailable")
    return file_of(row)


def create(
    db: Database,
    tenant_id: str,
    draft: BlobWriter,
    *,
    filename: str,
    purpose: Purpose,
    most_bytes: int,
    ttl_s: float | None = None,
) -> File:
    """Store a content and add a file for it, unless the tenant's files would exceed ``most_bytes`` together.

    Raises QuotaExceeded, Unavailable.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        check_quota(connection, tenant_id, draft.num_bytes, most_bytes)
    keep_content(db, draft)  # outside of a transaction: the storage may be slow
    with db.begin(tenant_id=tenant_id) as connection:
        lock_files(connection, tenant_id)
        check_quota(connection, tenant_id, draft.num_bytes, most_bytes)
        return add(connection, tenant_id, draft, filename=filename, purpose=purpose, ttl_s=ttl_s)


def lock_files(connection: Connection, tenant_id: str) -> None:
    """Lock the tenant's files for the transaction, so that those that are added at the same time are counted."""
    connection.execute(_LOCK_FILES, {"tenant_id": tenant_id})


def check_quota(connection: Connection, tenant_id: str, num_bytes: int, most_bytes: int) -> None:
    """Raise QuotaExceeded if the tenant's files and parts would exceed ``most_bytes`` with so many bytes more."""
    stored = connection.execute(_STORED, {"tenant_id": tenant_id}).scalar_one()
    if stored + num_bytes > most_bytes:
        raise QuotaExceeded(
            f"this organization's files have {stored} bytes of the {most_bytes} that they may have, and this one has "
            f"{num_bytes}: delete some first"
        )


def get(db: Database, tenant_id: str, file_id: str) -> File:
    """Return the file. Raises NotFound if this tenant has no such file, or it has expired."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_GET, {"id": file_id, "tenant_id": tenant_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no file {file_id}")
    return file_of(row)


def list_files(
    db: Database,
    tenant_id: str,
    *,
    purpose: Purpose | None = None,
    limit: int,
    after: str | None = None,
    descending: bool = True,
) -> Sequence[File]:
    """Return at most ``limit`` files by age, newest first by default, after the id ``after``."""
    values = {"tenant_id": tenant_id, "purpose": purpose, "after": after, "limit": limit}
    with db.autocommit(tenant_id=tenant_id) as connection:
        found = connection.execute(_NEWEST_FIRST if descending else _OLDEST_FIRST, values).mappings()
        return [file_of(row) for row in found]


def delete(db: Database, tenant_id: str, file_id: str, *, actor: str) -> None:
    """Delete a file. Its content is removed later, if nothing else refers to it. Raises NotFound."""
    with db.begin(tenant_id=tenant_id) as connection:
        purpose = connection.execute(_DELETE, {"id": file_id, "tenant_id": tenant_id}).scalar_one_or_none()
        if purpose is None:
            raise NotFound(f"no file {file_id}")
        record(connection, tenant_id, actor, "file.deleted", file_id, {"purpose": purpose})


def discard(db: Database, tenant_id: str, file_id: str) -> None:
    """Delete a file that was made for a job which does not need it, if it still exists. Nothing is recorded of it."""
    with db.begin(tenant_id=tenant_id) as connection:
        connection.execute(_DELETE, {"id": file_id, "tenant_id": tenant_id})


def give_to_job(db: Database, tenant_id: str, file_id: str, job_id: str) -> None:
    """Let a file go with the input of a job: when that is erased, the file is deleted too."""
    with db.begin(tenant_id=tenant_id) as connection:
        connection.execute(_GIVE, {"id": file_id, "tenant_id": tenant_id, "job_id": job_id})


def expire(db: Database, limit: int = 1000) -> int:
    """Delete at most ``limit`` expired files. Returns their number."""
    with db.autocommit() as connection:
        return connection.execute(_EXPIRE, {"limit": limit}).rowcount


def remove_unreferenced(db: Database, blobs: Blobs, *, older_than_s: float = UNREFERENCED_S, limit: int = 100) -> int:
    """Remove at most ``limit`` contents without references from the storage. Returns their number.

    No lock is held during calls to the storage, which may be slow. Raises Unavailable; the next call continues.
    """
    with db.begin() as connection:
        due = {"older_than_s": older_than_s, "limit": limit}
        digests = list(connection.execute(_UNREFERENCED, due).scalars())
        connection.execute(_MARK, {"digests": digests})
    with db.autocommit() as connection:
        marked = list(connection.execute(_MARKED, {"limit": limit}).scalars())
    for digest in marked:
        blobs.remove(digest)
        with db.begin() as connection:
            connection.execute(_DELETE_INPUTS, {"digest": digest})
            connection.execute(_DELETE_CONTENT, {"digest": digest})
    return len(marked)


def file_of(row: RowMapping | Mapping[str, Any]) -> File:
    """Return the file of a row with ``COLUMNS``."""
    return File(**{**row, "purpose": Purpose(row["purpose"])})

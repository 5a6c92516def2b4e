"""Files that come in parts: each part is a content of its own, and ``complete`` joins them into one file.

An upload and its parts are rows until an hour after its creation. Then ``expire`` deletes them, and the contents of the
parts are removed as those of deleted files are (``features.files.files``). An upload whose time is over is not found.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Connection, RowMapping, text

from headrace.features.files import files
from headrace.features.files.blob_storage import Blobs, BlobWriter, read_blocks
from headrace.features.files.files import IS_KEPT, File, Purpose
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, InvalidRequest, NotFound, Unavailable
from headrace.store.ids import new_id

LIFE_S = 3600.0
"""How long after its creation parts may be added to an upload."""

MOST_PARTS = 1024
"""The most parts of one upload."""


class UploadStatus(StrEnum):
    """State of an upload."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload. ``num_bytes``: of the whole file; ``ttl_s``: how long the file is kept; ``file_id``: once complete."""

    id: str
    tenant_id: str
    status: UploadStatus
    num_bytes: int
    filename: str
    purpose: Purpose
    ttl_s: int | None
    file_id: str | None
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class UploadPart:
    """A part of an upload, and the name of its content."""

    id: str
    upload_id: str
    digest: str
    num_bytes: int
    created_at: datetime


_COLUMNS = "id, tenant_id, status, num_bytes, filename, purpose, ttl_s, file_id, created_at, expires_at"
_PART = "id, upload_id, digest, num_bytes, created_at"
_IS_CURRENT = "id = :id AND tenant_id = :tenant_id AND expires_at > now()"

# Adds an upload.
_INSERT = text(f"""
INSERT INTO uploads (id, tenant_id, num_bytes, filename, purpose, ttl_s, expires_at)
VALUES (:id, :tenant_id, :num_bytes, :filename, :purpose, :ttl_s, now() + make_interval(secs => :life_s))
RETURNING {_COLUMNS}
""")

# One upload that has not expired.
_GET = text(f"SELECT {_COLUMNS} FROM uploads WHERE {_IS_CURRENT}")

# The same, locked.
_LOCK = text(f"SELECT {_COLUMNS} FROM uploads WHERE {_IS_CURRENT} FOR NO KEY UPDATE")

# Adds a part, if its content is not marked for removal.
_INSERT_PART = text(f"""
WITH kept AS ({IS_KEPT})
INSERT INTO upload_parts (id, tenant_id, upload_id, digest, num_bytes)
SELECT :id, :tenant_id, :upload_id, digest, :num_bytes FROM kept
RETURNING {_PART}
""")

# The parts of an upload.
_PARTS = text(f"SELECT {_PART} FROM upload_parts WHERE tenant_id = :tenant_id AND upload_id = :id")

# Number of parts of an upload.
_NUM_PARTS = text("SELECT count(*) FROM upload_parts WHERE tenant_id = :tenant_id AND upload_id = :id")

_DELETE_PARTS = text("DELETE FROM upload_parts WHERE tenant_id = :tenant_id AND upload_id = :id")

# Ends an upload.
_END = text(f"""
UPDATE uploads SET status = :status, file_id = :file_id WHERE id = :id AND tenant_id = :tenant_id RETURNING {_COLUMNS}
""")

# Deletes expired uploads with their parts.
_EXPIRE = text("""
DELETE FROM expired_uploads WHERE id IN (SELECT id FROM expired_uploads ORDER BY expires_at LIMIT :limit)
""")


def create(
    db: Database,
    tenant_id: str,
    *,
    num_bytes: int,
    filename: str,
    purpose: Purpose,
    most_bytes: int,
    ttl_s: float | None = None,
) -> Upload:
    """Begin an upload of ``num_bytes``. Raises QuotaExceeded if the tenant's files have no room for it."""
    values = {
        "id": new_id("upload"),
        "tenant_id": tenant_id,
        "num_bytes": num_bytes,
        "filename": filename,
        "purpose": purpose,
        "ttl_s": ttl_s,
        "life_s": LIFE_S,
    }
    with db.begin(tenant_id=tenant_id) as connection:
        files.check_quota(connection, tenant_id, num_bytes, most_bytes)
        return _upload(connection.execute(_INSERT, values).mappings().one())


def get_pending(db: Database, tenant_id: str, upload_id: str) -> Upload:
    """Return an upload that takes parts. Raises NotFound, also if its time is over; Conflict if it has ended."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return _pending(connection, tenant_id, upload_id, is_locked=False)


def add_part(db: Database, tenant_id: str, upload_id: str, draft: BlobWriter, *, most_bytes: int) -> UploadPart:
    """Store a content and add it to the upload. Raises as ``get_pending`` does, and QuotaExceeded, Unavailable."""
    with db.begin(tenant_id=tenant_id) as connection:
        files.check_quota(connection, tenant_id, draft.num_bytes, most_bytes)
    files.keep_content(db, draft)  # outside of a transaction: the storage may be slow
    values = {"id": new_id("part"), "tenant_id": tenant_id, "upload_id": upload_id, "num_bytes": draft.num_bytes}
    with db.begin(tenant_id=tenant_id) as connection:
        files.lock_files(connection, tenant_id)
        files.check_quota(connection, tenant_id, draft.num_bytes, most_bytes)
        _pending(connection, tenant_id, upload_id)
        if connection.execute(_NUM_PARTS, {"id": upload_id, "tenant_id": tenant_id}).scalar_one() >= MOST_PARTS:
            raise InvalidRequest(f"an upload has at most {MOST_PARTS} parts: begin a new one with larger parts")
        row = connection.execute(_INSERT_PART, values | {"digest": draft.name}).mappings().one_or_none()
    if row is None:
        raise Unavailable("the content was removed before its part was made: send it again", code="storage_unavailable")
    return UploadPart(**row)


def complete(
    db: Database,
    blobs: Blobs,
    tenant_id: str,
    upload_id: str,
    part_ids: Sequence[str],
    *,
    md5: str | None,
    most_bytes: int,
) -> tuple[Upload, File | None]:
    """Make a file of the parts, in this order. For a completed upload, return it with its file, if that still exists.

    ``md5``: of the whole file, in hex. Raises NotFound, Conflict if the upload was cancelled, InvalidRequest if the
    parts are not the upload's, or not the file that was announced, QuotaExceeded, Unavailable.
    """
    values = {"id": upload_id, "tenant_id": tenant_id}
    with db.autocommit(tenant_id=tenant_id) as connection:
        upload = _get(connection, tenant_id, upload_id)
        parts = {row["id"]: UploadPart(**row) for row in connection.execute(_PARTS, values).mappings()}
    if upload.status is UploadStatus.COMPLETED:
        return upload, _file_of(db, upload)
    if upload.status is UploadStatus.CANCELLED:
        raise _ended(upload)
    draft = blobs.create()
    try:
        _join(blobs, draft, _in_order(upload, parts, part_ids), md5)
        files.keep_content(db, draft)
        with db.begin(tenant_id=tenant_id) as connection:
            files.lock_files(connection, tenant_id)
            _pending(connection, tenant_id, upload_id)
            connection.execute(_DELETE_PARTS, values)
            files.check_quota(connection, tenant_id, draft.num_bytes, most_bytes)
            done, file = _make_file(connection, upload, draft)
    finally:
        draft.drop()
    return done, file


def cancel(db: Database, tenant_id: str, upload_id: str) -> Upload:
    """Cancel the upload and delete its parts. Raises NotFound, Conflict if it was completed."""
    with db.begin(tenant_id=tenant_id) as connection:
        upload = _get(connection, tenant_id, upload_id, is_locked=True)
        if upload.status is UploadStatus.COMPLETED:
            raise _ended(upload)
        connection.execute(_DELETE_PARTS, {"id": upload_id, "tenant_id": tenant_id})
        return _end(connection, upload, UploadStatus.CANCELLED, None)


def expire(db: Database, limit: int = 1000) -> int:
    """Delete at most ``limit`` expired uploads with their parts. Returns the number of uploads."""
    with db.autocommit() as connection:
        return connection.execute(_EXPIRE, {"limit": limit}).rowcount


def _in_order(upload: Upload, parts: Mapping[str, UploadPart], part_ids: Sequence[str]) -> list[UploadPart]:
    for index, part_id in enumerate(part_ids):
        if part_id not in parts:
            raise InvalidRequest(f"{part_id[:80]!r} is not a part of this upload", param=f"part_ids[{index}]")
        if part_id in part_ids[:index]:
            raise InvalidRequest(f"{part_id[:80]} is named twice: name each part once", param=f"part_ids[{index}]")
    chosen = [parts[part_id] for part_id in part_ids]
    num_bytes = sum(part.num_bytes for part in chosen)
    if num_bytes != upload.num_bytes:
        raise InvalidRequest(
            f"the parts have {num_bytes} bytes, and the upload was begun for {upload.num_bytes}: name all parts",
            param="part_ids",
        )
    return chosen


def _join(blobs: Blobs, draft: BlobWriter, parts: Sequence[UploadPart], md5: str | None) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        for block in read_blocks(blobs, part.digest):
            draft.write(block)
            digest.update(block)
    if md5 is not None and md5.lower() != digest.hexdigest():
        raise InvalidRequest(f"the parts have the MD5 {digest.hexdigest()}: send again what differs", param="md5")


def _make_file(connection: Connection, upload: Upload, draft: BlobWriter) -> tuple[Upload, File]:
    name, purpose, ttl_s = upload.filename, upload.purpose, upload.ttl_s
    file = files.add(connection, upload.tenant_id, draft, filename=name, purpose=purpose, ttl_s=ttl_s)
    return _end(connection, upload, UploadStatus.COMPLETED, file.id), file


def _get(connection: Connection, tenant_id: str, upload_id: str, *, is_locked: bool = False) -> Upload:
    values = {"id": upload_id, "tenant_id": tenant_id}
    row = connection.execute(_LOCK if is_locked else _GET, values).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no upload {upload_id[:80]}: an upload is kept for {LIFE_S / 3600:g} hour")
    return _upload(row)


def _pending(connection: Connection, tenant_id: str, upload_id: str, *, is_locked: bool = True) -> Upload:
    upload = _get(connection, tenant_id, upload_id, is_locked=is_locked)
    if upload.status is not UploadStatus.PENDING:
        raise _ended(upload)
    return upload


def _end(connection: Connection, upload: Upload, status: UploadStatus, file_id: str | None) -> Upload:
    values = {"id": upload.id, "tenant_id": upload.tenant_id, "status": status, "file_id": file_id}
    return _upload(connection.execute(_END, values).mappings().one())


def _ended(upload: Upload) -> Conflict:
    return Conflict(f"the upload {upload.id} is {upload.status}: begin a new one")


def _file_of(db: Database, upload: Upload) -> File | None:
    try:
        return files.get(db, upload.tenant_id, upload.file_id or "")
    except NotFound:
        return None


def _upload(row: RowMapping) -> Upload:
    return Upload(**{**row, "status": UploadStatus(row["status"]), "purpose": Purpose(row["purpose"])})

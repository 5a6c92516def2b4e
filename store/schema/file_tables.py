"""The tables of files and batches, beside ``store.schema.tables`` and under the same rules."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from store.schema.batch_states import BatchStatus
from store.schema.tables import metadata


def _time(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True))


def _now(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


# A content in the storage. The row is there before the content is, and goes after it has gone.
blobs = Table(
    "blobs",
    metadata,
    # The content's name: its SHA-256, then a dot and a number drawn for it. An older release wrote the first alone.
    Column("digest", String, primary_key=True),
    Column("num_bytes", BigInteger, nullable=False),
    # When a process last was about to refer to it: what nothing refers to is removed some time after that.
    _now("touched_at"),
    # Since when nothing may refer to it any more, for it is being removed.
    _time("removed_at"),
    Index(None, "touched_at"),
    Index("ix_blobs_sha256", text("split_part(digest, '.', 1)")),
)

files = Table(
    "files",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("digest", String, ForeignKey("blobs.digest"), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    _now("created_at"),
    _time("expires_at"),
    Index(None, "tenant_id", "id"),
    Index(None, "tenant_id", "created_at"),
    Index(None, "digest"),
    Index("ix_files_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)

_STATUSES = ", ".join(repr(str(status)) for status in BatchStatus)
_OVER = ", ".join(repr(str(status)) for status in BatchStatus if status.is_terminal)
_LIVE = ", ".join(repr(str(status)) for status in BatchStatus if not status.is_terminal)

batches = Table(
    "batches",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("status", String, nullable=False, server_default=BatchStatus.VALIDATING),
    Column("url", String, nullable=False),
    Column("input_file_id", String, nullable=False),
    # Beside the file's id, for the file may be deleted while the batch still reads it; null once nobody needs it.
    Column("input_digest", String, ForeignKey("blobs.digest")),
    # Whom the lines' usage is counted for, beside the tenant.
    Column("api_key_id", String, nullable=False),
    Column("project_id", String),
    Column("completion_window", String, nullable=False),
    Column("metadata", JSONB),
    Column("output_ttl_s", BigInteger),
    # Of the request that made it, so that the same one sent again finds it.
    Column("fingerprint", String),
    Column("idempotency_key", String),
    Column("model", String),
    Column("errors", JSONB),
    # How far the input has become jobs: moved in the transaction that stores them.
    Column("next_line", Integer, nullable=False, server_default=text("1")),
    Column("next_offset", BigInteger, nullable=False, server_default=text("0")),
    Column("num_total", Integer, nullable=False, server_default=text("0")),
    Column("num_completed", Integer, nullable=False, server_default=text("0")),
    Column("num_failed", Integer, nullable=False, server_default=text("0")),
    Column("input_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("output_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("output_file_id", String),
    Column("error_file_id", String),
    _now("created_at"),
    _time("in_progress_at"),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    _time("finalizing_at"),
    _time("completed_at"),
    _time("failed_at"),
    _time("expired_at"),
    _time("cancelling_at"),
    _time("cancelled_at"),
    # Since when what it said, beside its files, is gone.
    _time("purged_at"),
    CheckConstraint(f"status IN ({_STATUSES})", name="status_known"),
    UniqueConstraint("tenant_id", "idempotency_key"),
    Index("uq_batches_tenant_id_id", "tenant_id", "id", unique=True),
    Index(None, "input_digest"),
    Index("ix_batches_kept", "tenant_id", "id", postgresql_where=text(f"purged_at IS NULL AND status IN ({_OVER})")),
    Index("ix_batches_purged_at", "purged_at", postgresql_where=text("purged_at IS NOT NULL")),
    Index("ix_batches_live", "id", postgresql_where=text(f"status IN ({_LIVE})")),
    Index("ix_batches_fingerprint", "tenant_id", "fingerprint", postgresql_where=text("fingerprint IS NOT NULL")),
)

# A line of a batch's input that was taken on: as a job, or refused with ``refusal``. ``outcome`` is null in between.
batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", String, ForeignKey("batches.id", ondelete="CASCADE"), nullable=False),
    Column("line", Integer, nullable=False),
    Column("custom_id", String, nullable=False),
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE")),
    Column("refusal", JSONB),
    Column("outcome", String),
    PrimaryKeyConstraint("batch_id", "line"),
    UniqueConstraint("job_id"),
    CheckConstraint("job_id IS NOT NULL OR refusal IS NOT NULL", name="job_or_refusal"),
    Index("ix_batch_lines_under_way", "batch_id", postgresql_where=text("outcome IS NULL")),
)

"""The tables of batches. The rules are those of ``store.schema.tables``."""

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
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from headrace.store.schema.batch_states import BatchStatus
from headrace.store.schema.tables import metadata, timestamp

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
    # Stored as well, because the file may be deleted while the batch reads it. Null once it is not needed.
    Column("input_digest", String, ForeignKey("blobs.digest")),
    # The lines' usage is counted for these, and for the tenant.
    Column("api_key_id", String, nullable=False),
    Column("project_id", String),
    # Of the request that made it; the traces of its jobs link to it.
    Column("traceparent", String),
    Column("completion_window", String, nullable=False),
    Column("metadata", JSONB),
    Column("output_ttl_s", BigInteger),
    # The fingerprint of the request, to recognise a repeated request.
    Column("fingerprint", String),
    Column("idempotency_key", String),
    Column("model", String),
    # The version of each model string of its lines, as ``name@3``; it was read once, when the input was validated.
    Column("model_versions", JSONB),
    Column("errors", JSONB),
    # The position in the input: lines before it are jobs. It moves in the transaction that stores the jobs.
    Column("next_line", Integer, nullable=False, server_default=text("1")),
    Column("next_offset", BigInteger, nullable=False, server_default=text("0")),
    Column("num_total", Integer, nullable=False, server_default=text("0")),
    Column("num_completed", Integer, nullable=False, server_default=text("0")),
    Column("num_failed", Integer, nullable=False, server_default=text("0")),
    Column("input_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("output_tokens", BigInteger, nullable=False, server_default=text("0")),
    # Parts of the two: what a prefix cache had of the input, and the reasoning of the output.
    Column("cached_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("output_file_id", String),
    Column("error_file_id", String),
    timestamp("created_at", required=True),
    # No line is submitted before.
    timestamp("start_after"),
    timestamp("in_progress_at"),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    timestamp("finalizing_at"),
    timestamp("completed_at"),
    timestamp("failed_at"),
    timestamp("expired_at"),
    timestamp("cancelling_at"),
    timestamp("cancelled_at"),
    # When its contents, apart from its files, were purged.
    timestamp("purged_at"),
    CheckConstraint(f"status IN ({_STATUSES})", name="status_known"),
    UniqueConstraint("tenant_id", "idempotency_key"),
    Index("uq_batches_tenant_id_id", "tenant_id", "id", unique=True),
    Index(None, "input_digest"),
    Index("ix_batches_kept", "tenant_id", "id", postgresql_where=text(f"purged_at IS NULL AND status IN ({_OVER})")),
    Index("ix_batches_purged_at", "purged_at", postgresql_where=text("purged_at IS NOT NULL")),
    Index("ix_batches_live", "id", postgresql_where=text(f"status IN ({_LIVE})")),
    Index("ix_batches_fingerprint", "tenant_id", "fingerprint", postgresql_where=text("fingerprint IS NOT NULL")),
)

# A line of a batch's input: accepted as a job, or refused with ``refusal``. ``outcome`` is null until the job ends.
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

"""The tables of files and uploads. The rules are those of ``store.schema.tables``."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    text,
)

from headrace.store.schema.tables import metadata, timestamp

# The contents in the storage. A row is inserted before its content is written and deleted after its content.
blobs = Table(
    "blobs",
    metadata,
    # The content's name: its SHA-256, a dot and a random number.
    Column("digest", String, primary_key=True),
    Column("num_bytes", BigInteger, nullable=False),
    # When a process last prepared a reference to it. A content without references is removed some time after that.
    timestamp("touched_at", required=True),
    # Set when its removal begins; from then on nothing may refer to it.
    timestamp("removed_at"),
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
    timestamp("created_at", required=True),
    timestamp("expires_at"),
    # The job that it came with: it is deleted with the job's input. Null for a file of its own.
    Column("job_id", String),
    # The job that made it, and its number there from 0: it is deleted with the job's output.
    Column("result_of", String),
    Column("position", Integer),
    # As the job's worker declared it; null: bytes without a type.
    Column("media_type", String),
    # Unique, for the foreign keys of ``of_its_tenant``.
    Index("uq_files_tenant_id_id", "tenant_id", "id", unique=True),
    Index(None, "tenant_id", "created_at"),
    Index("ix_files_job_id", "job_id", postgresql_where=text("job_id IS NOT NULL")),
    Index(
        "uq_files_result_of_position",
        "result_of",
        "position",
        unique=True,
        postgresql_where=text("result_of IS NOT NULL"),
    ),
    Index(None, "digest"),
    Index("ix_files_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)

# A file that comes in parts. It is deleted with its parts an hour after it was made, whether it became a file or not.
uploads = Table(
    "uploads",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("status", String, nullable=False, server_default="pending"),
    # Of the whole file.
    Column("num_bytes", BigInteger, nullable=False),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    # Of the file, once it is made.
    Column("ttl_s", BigInteger),
    Column("file_id", String),
    timestamp("created_at", required=True),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    CheckConstraint("status IN ('pending', 'completed', 'cancelled')", name="status_known"),
    Index(None, "tenant_id", "id"),
    Index(None, "expires_at"),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("upload_id", String, ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False),
    Column("digest", String, ForeignKey("blobs.digest"), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    timestamp("created_at", required=True),
    Index(None, "tenant_id", "upload_id"),
    Index(None, "upload_id"),
    Index(None, "digest"),
)

"""The tables of vector stores. The rules are those of ``store.schema.tables``.

No column needs an extension: a vector is an array, which pgvector's expressions read where the extension is there.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL, TSVECTOR

from headrace.store.schema.tables import metadata, of_its_tenant, timestamp

_NO_FIELDS = text("'{}'::jsonb")

vector_stores = Table(
    "vector_stores",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("name", String, nullable=False, server_default=text("''")),
    Column("description", String),
    Column("metadata", JSONB, nullable=False, server_default=_NO_FIELDS),
    # The model version that makes all of its vectors, and how many numbers each has.
    Column("model", String, nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("dimensions", Integer, nullable=False),
    Column("expires_days", Integer),
    timestamp("created_at", required=True),
    timestamp("last_active_at", required=True),
    timestamp("expires_at"),
    # Set when it was deleted; its rows are then deleted in steps.
    timestamp("deleted_at"),
    # Unique, for the foreign keys of ``of_its_tenant``.
    Index("uq_vector_stores_tenant_id_id", "tenant_id", "id", unique=True),
    Index("ix_vector_stores_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    Index("ix_vector_stores_deleted_at", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
)

vector_store_batches = Table(
    "vector_store_batches",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("store_id", String, nullable=False),
    timestamp("created_at", required=True),
    timestamp("cancelled_at"),
    of_its_tenant("store_id", "vector_stores"),
    Index(None, "tenant_id", "store_id"),
)

vector_store_files = Table(
    "vector_store_files",
    metadata,
    Column("store_id", String, nullable=False),
    Column("file_id", String, nullable=False),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    # Of this attachment: only the job with the same ticket writes its passages.
    Column("ticket", String, nullable=False),
    Column("batch_id", String),
    # The job that reads the file; null until it is accepted.
    Column("job_id", String),
    # When its passages were stored. Until then its job says how it stands.
    timestamp("completed_at"),
    Column("num_passages", Integer, nullable=False, server_default=text("0")),
    Column("num_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("attributes", JSONB, nullable=False, server_default=_NO_FIELDS),
    Column("chunk_tokens", Integer, nullable=False),
    Column("overlap_tokens", Integer, nullable=False),
    timestamp("created_at", required=True),
    PrimaryKeyConstraint("store_id", "file_id"),
    of_its_tenant("store_id", "vector_stores"),
    of_its_tenant("file_id", "files"),
    Index("uq_vector_store_files_ticket", "ticket", unique=True),
    Index(None, "tenant_id", "file_id"),
    Index(None, "tenant_id", "store_id", "created_at"),
    Index("ix_vector_store_files_batch_id", "batch_id", postgresql_where=text("batch_id IS NOT NULL")),
)

vector_store_passages = Table(
    "vector_store_passages",
    metadata,
    Column("store_id", String, nullable=False),
    Column("file_id", String, nullable=False),
    Column("position", Integer, nullable=False),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    # The text and its place in the file; sealed if there are keys.
    Column("content", JSONB, nullable=False),
    # Its words for full-text search; without their places if the content is sealed.
    Column("terms", TSVECTOR, nullable=False),
    # Of length 1, so that the product of two is their cosine.
    Column("embedding", ARRAY(REAL), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("store_id", "file_id", "position"),
    ForeignKeyConstraint(
        ["store_id", "file_id"], ["vector_store_files.store_id", "vector_store_files.file_id"], ondelete="CASCADE"
    ),
    Index("ix_vector_store_passages_terms", "terms", postgresql_using="gin"),
)

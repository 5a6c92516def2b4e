"""The table of the response cache. An answer is stored in its job alone: an entry names that job."""

from sqlalchemy import (
    Column,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    func,
)

from headrace.store.schema.tables import metadata

cache_entries = Table(
    "cache_entries",
    metadata,
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    # Of the model version, the policy and the payload: a keyed digest where the process has keys.
    Column("digest", String, nullable=False),
    # The source: the job that computes the answer, or has computed it.
    Column("job_id", String, nullable=False),
    Column("class_rank", SmallInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("tenant_id", "digest"),
    # Checked at the end of the transaction, because the entry is inserted before its job.
    ForeignKeyConstraint(
        ["tenant_id", "job_id"],
        ["jobs.tenant_id", "jobs.id"],
        ondelete="CASCADE",
        deferrable=True,
        initially="DEFERRED",
    ),
    Index(None, "job_id"),
    Index(None, "tenant_id", "created_at"),
)

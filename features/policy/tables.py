"""The table of policies: numbered versions that never change. The newest version of a policy is in force."""

from sqlalchemy import CheckConstraint, Column, DateTime, ForeignKey, Integer, PrimaryKeyConstraint, String, Table, func
from sqlalchemy.dialects.postgresql import JSONB

from headrace.store.schema.tables import metadata

policies = Table(
    "policies",
    metadata,
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    # Empty: for every model without a policy of its own.
    Column("model", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("document", JSONB, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("tenant_id", "model", "version"),
    CheckConstraint("version > 0", name="version_positive"),
)

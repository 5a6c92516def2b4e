"""The table of tools. The rules are those of ``store.schema.tables``."""

from sqlalchemy import CheckConstraint, Column, DateTime, ForeignKey, Index, String, Table, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB

from headrace.store.schema.tables import metadata, of_its_tenant, timestamp

# Tools that the server calls for the models of a tenant.
tools = Table(
    "tools",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("name", String, nullable=False),
    # URL, headers with their secrets, schema and limits; sealed if there are keys.
    Column("definition", JSONB, nullable=False),
    timestamp("created_at", required=True),
    timestamp("updated_at", required=True),
    UniqueConstraint("tenant_id", "name"),
)

# Calls of tools that wait, or have waited, for an approval. The arguments are in the payload of the step.
tool_approvals = Table(
    "tool_approvals",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("job_id", String, nullable=False),
    Column("step_id", String, nullable=False, unique=True),
    Column("tool", String, nullable=False),
    Column("state", String, nullable=False, server_default="pending"),
    # Until then it may be answered.
    Column("expires_at", DateTime(timezone=True), nullable=False),
    timestamp("created_at", required=True),
    timestamp("decided_at"),
    # The id of the key.
    Column("decided_by", String),
    # What the answer says, a text; sealed if there are keys, and erased with the output of the job.
    Column("reason", JSONB),
    CheckConstraint("state IN ('pending', 'approved', 'refused', 'expired', 'cancelled')", name="state_known"),
    of_its_tenant("job_id", "jobs"),
    of_its_tenant("step_id", "jobs"),
    Index(None, "tenant_id", "id"),
    Index(None, "job_id"),
    Index("ix_tool_approvals_due", "expires_at", postgresql_where=text("state = 'pending'")),
)

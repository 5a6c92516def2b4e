"""The table of retention: how long a tenant's contents are kept."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    PrimaryKeyConstraint,
    String,
    Table,
    func,
)

from headrace.store.schema.tables import metadata

# In seconds. Null: the operator's row, or the settings, decide.
retention_overrides = Table(
    "retention_overrides",
    metadata,
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("set_by", String, nullable=False),
    Column("inputs_s", BigInteger),
    Column("outputs_s", BigInteger),
    Column("deliveries_s", BigInteger),
    Column("files_s", BigInteger),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("set_by IN ('operator', 'tenant')", name="set_by_known"),
    PrimaryKeyConstraint("tenant_id", "set_by"),
)

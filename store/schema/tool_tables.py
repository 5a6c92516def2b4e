"""The table of tools. The rules are those of ``store.schema.tables``."""

from sqlalchemy import Column, ForeignKey, String, Table, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB

from store.schema.tables import metadata, timestamp

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

"""The tables of prompt templates and pipelines."""

from sqlalchemy import (
    CheckConstraint,
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
from sqlalchemy.dialects.postgresql import JSONB

from headrace.store.schema.tables import metadata

prompts = Table(
    "prompts",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("name", String, nullable=False, server_default=text("''")),
    # "prompt" or "pipeline".
    Column("kind", String, nullable=False, server_default=text("'prompt'")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index(None, "tenant_id", "id"),
    Index("uq_prompts_tenant_id_name", "tenant_id", "name", unique=True, postgresql_where=text("name <> ''")),
)

# Rows are never updated.
prompt_versions = Table(
    "prompt_versions",
    metadata,
    Column("prompt_id", String, ForeignKey("prompts.id", ondelete="CASCADE"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("template", JSONB, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("prompt_id", "version"),
    CheckConstraint("version > 0", name="version_positive"),
)

prompt_aliases = Table(
    "prompt_aliases",
    metadata,
    Column("prompt_id", String, nullable=False),
    Column("alias", String, nullable=False),
    Column("version", Integer, nullable=False),
    # A version that gets a part of the jobs. No foreign key: a version is never removed without its aliases.
    Column("canary_version", Integer),
    Column("canary_percent", Integer),
    PrimaryKeyConstraint("prompt_id", "alias"),
    ForeignKeyConstraint(
        ["prompt_id", "version"], ["prompt_versions.prompt_id", "prompt_versions.version"], ondelete="CASCADE"
    ),
)

"""The tables of the Responses API, beside ``store.schema.tables``: what a job row cannot hold, and prompt templates."""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from store.schema.tables import metadata, of_its_tenant

# A job that came as a response: ``resp_0197…`` is ``job_0197…``.
responses = Table(
    "responses",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    # No foreign key: a response may be made while the one before it is forgotten.
    Column("previous_id", String),
    Column("is_stored", Boolean, nullable=False),
    Column("is_background", Boolean, nullable=False),
    # The items that the answer was generated from: if it goes on, without those of the response before it.
    Column("input", JSONB, nullable=False),
    Column("goes_on", Boolean, nullable=False, server_default=text("false")),
    # What was asked, as the response shows it again.
    Column("request", JSONB, nullable=False),
    Column("deleted_at", DateTime(timezone=True)),
    # Its time is over, and a later response goes on from its items.
    Column("hidden_at", DateTime(timezone=True)),
    of_its_tenant("job_id", "jobs"),
    Index(None, "tenant_id", "job_id"),
    Index("ix_responses_previous_id", "tenant_id", "previous_id", postgresql_where=text("previous_id IS NOT NULL")),
)

prompts = Table(
    "prompts",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("name", String, nullable=False, server_default=text("''")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index(None, "tenant_id", "id"),
)

# Never updated: a version says the same for ever.
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

"""The tables of the Responses API: the columns of a response that its job does not have, and conversations."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from headrace.store.schema.tables import metadata, of_its_tenant

# A job of the Responses API: ``resp_0197…`` is ``job_0197…``.
responses = Table(
    "responses",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    # No foreign key: the previous response may be purged while a response is made.
    Column("previous_id", String),
    Column("is_stored", Boolean, nullable=False),
    Column("is_background", Boolean, nullable=False),
    # The items that the answer was generated from; with ``goes_on``, without the items of the previous response.
    Column("input", JSONB, nullable=False),
    Column("goes_on", Boolean, nullable=False, server_default=text("false")),
    # The request's fields, which the response repeats.
    Column("request", JSONB, nullable=False),
    Column("deleted_at", DateTime(timezone=True)),
    # Set when its retention is over and a later response still needs its items.
    Column("hidden_at", DateTime(timezone=True)),
    # The conversation that gets its items once it has ended; null when that is done. No foreign key: the conversation
    # may be deleted before.
    Column("appends_to", String),
    of_its_tenant("job_id", "jobs"),
    Index(None, "tenant_id", "job_id"),
    Index("ix_responses_previous_id", "tenant_id", "previous_id", postgresql_where=text("previous_id IS NOT NULL")),
    Index("ix_responses_appends_to", "tenant_id", "appends_to", postgresql_where=text("appends_to IS NOT NULL")),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # When it was last changed or continued; its retention is counted from then.
    Column("used_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # Unique, for the foreign keys of ``of_its_tenant``.
    Index("uq_conversations_tenant_id_id", "tenant_id", "id", unique=True),
    Index(None, "tenant_id", "used_at"),
)

conversation_items = Table(
    "conversation_items",
    metadata,
    Column("conversation_id", String, nullable=False),
    # Of the item; two conversations may have the same one.
    Column("id", String, nullable=False),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("position", BigInteger, Identity(), nullable=False),
    # The response that it was copied from, which may be gone.
    Column("response_id", String),
    Column("num_bytes", Integer, nullable=False),
    Column("item", JSONB, nullable=False),
    PrimaryKeyConstraint("conversation_id", "id"),
    of_its_tenant("conversation_id", "conversations"),
    Index(None, "tenant_id", "conversation_id", "position"),
    Index("ix_conversation_items_response_id", "response_id", postgresql_where=text("response_id IS NOT NULL")),
)

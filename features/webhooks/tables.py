"""The tables of webhooks. The rules are those of ``store.schema.tables``."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from headrace.store.schema.tables import metadata, of_its_tenant, timestamp

# The secret that signs calls to jobs' own URLs, if it was rotated; otherwise ``tenants.webhook_secret`` signs.
webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("tenant_id", String, ForeignKey("tenants.id"), primary_key=True),
    Column("secret", String, nullable=False),
    # The previous secret, which also signs for a while.
    Column("old_secret", String),
    timestamp("old_secret_until"),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", String, nullable=False),
    # The previous secret, which also signs for a while after a rotation.
    Column("old_secret", String),
    timestamp("old_secret_until"),
    Column("events", ARRAY(String), nullable=False),
    timestamp("created_at", required=True),
    timestamp("disabled_at"),
    Column("disabled_reason", String),
    # Since when every attempt has failed; null after a success.
    timestamp("failing_since"),
    timestamp("last_failed_at"),
    CheckConstraint("disabled_reason IN ('gone', 'failing')", name="disabled_reason_known"),
    UniqueConstraint("tenant_id", "url"),
    Index("uq_webhook_endpoints_tenant_id_id", "tenant_id", "id", unique=True),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    # Null for the URL that was given with the job; the tenant's secret signs then.
    Column("endpoint_id", String),
    # An endpoint is called at its present URL, not at the one stored here.
    Column("url", Text, nullable=False),
    # The subject of the event: a job, a batch, an endpoint, which may be removed, or something of the registry: the id
    # of a rollout or the name of a version.
    Column("job_id", String),
    Column("batch_id", String),
    Column("about_endpoint_id", String),
    Column("registry_id", String),
    Column("type", String, nullable=False),
    Column("state", String, nullable=False, server_default="pending"),
    # All attempts, and the attempts before the last redelivery: the schedule counts the difference.
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("attempts_before", Integer, nullable=False, server_default=text("0")),
    timestamp("next_attempt_at", required=True),
    Column("last_status", Integer),
    Column("last_error", String),
    timestamp("created_at", required=True),
    timestamp("delivered_at"),
    CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state_known"),
    CheckConstraint("num_nonnulls(job_id, batch_id, about_endpoint_id, registry_id) = 1", name="one_subject"),
    of_its_tenant("endpoint_id", "webhook_endpoints"),
    of_its_tenant("job_id", "jobs"),
    of_its_tenant("batch_id", "batches"),
    UniqueConstraint("job_id", "type", "url"),
    UniqueConstraint("batch_id", "type", "url"),
    Index(None, "endpoint_id"),
    Index(None, "tenant_id", "created_at"),
    Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
    # By receiver: see ``features.webhooks.outbox.Delivery.receiver``.
    Index(
        "ix_webhook_deliveries_receiver",
        text("(tenant_id || ' ' || COALESCE(endpoint_id, lower(split_part(url, '/', 3))))"),
        "next_attempt_at",
        postgresql_where=text("state = 'pending'"),
    ),
)

# The last attempts of each delivery.
webhook_attempts = Table(
    "webhook_attempts",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("delivery_id", String, ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("duration_ms", Integer, nullable=False),
    # Null if there was no answer.
    Column("status", Integer),
    # Null if it was delivered.
    Column("error", String),
    Index(None, "delivery_id", "id"),
)

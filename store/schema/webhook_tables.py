"""The tables of webhooks, beside ``store.schema.tables`` and under the same rules."""

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
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from store.schema.tables import metadata, of_its_tenant


def _time(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True))


def _now(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


# What signs the calls to jobs' own URLs since it was rotated; before that it is ``tenants.webhook_secret``.
webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("tenant_id", String, ForeignKey("tenants.id"), primary_key=True),
    Column("secret", String, nullable=False),
    # The one before, which signs beside it for a while.
    Column("old_secret", String),
    _time("old_secret_until"),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", String, nullable=False),
    # The one before, which signs beside it for a while after a rotation.
    Column("old_secret", String),
    _time("old_secret_until"),
    Column("events", ARRAY(String), nullable=False),
    _now("created_at"),
    _time("disabled_at"),
    # Null also for those that an older release disabled.
    Column("disabled_reason", String),
    # Since when every try has failed; null once one succeeds.
    _time("failing_since"),
    _time("last_failed_at"),
    CheckConstraint("disabled_reason IN ('gone', 'failing')", name="disabled_reason_known"),
    UniqueConstraint("tenant_id", "url"),
    Index("uq_webhook_endpoints_tenant_id_id", "tenant_id", "id", unique=True),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    # Null for the URL that came with the job itself; that one is signed with the tenant's secret.
    Column("endpoint_id", String),
    # An endpoint is called where it is now, not where it was when the event was written.
    Column("url", Text, nullable=False),
    # What it tells of: a job, a batch (whose table is in ``store.schema.file_tables``), or an endpoint, which may be
    # removed.
    Column("job_id", String),
    Column("batch_id", String),
    Column("about_endpoint_id", String),
    Column("type", String, nullable=False),
    Column("state", String, nullable=False, server_default="pending"),
    # All tries, and how many of them were before it was last asked for again: the schedule counts from there.
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("attempts_before", Integer, nullable=False, server_default=text("0")),
    _now("next_attempt_at"),
    Column("last_status", Integer),
    Column("last_error", String),
    _now("created_at"),
    _time("delivered_at"),
    CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state_known"),
    CheckConstraint("num_nonnulls(job_id, batch_id, about_endpoint_id) = 1", name="one_subject"),
    of_its_tenant("endpoint_id", "webhook_endpoints"),
    of_its_tenant("job_id", "jobs"),
    of_its_tenant("batch_id", "batches"),
    UniqueConstraint("job_id", "type", "url"),
    UniqueConstraint("batch_id", "type", "url"),
    Index(None, "endpoint_id"),
    Index(None, "tenant_id", "created_at"),
    Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
    # By who is to take it: see ``store.webhooks.outbox.Delivery.receiver``.
    Index(
        "ix_webhook_deliveries_receiver",
        text("(tenant_id || ' ' || COALESCE(endpoint_id, lower(split_part(url, '/', 3))))"),
        "next_attempt_at",
        postgresql_where=text("state = 'pending'"),
    ),
)

# The last tries of each delivery; who it is for is the delivery's to say.
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

"""The tables of limits: the limits of tenants and keys, and their use, which triggers count.

``open_*`` count the jobs that are queued or running, ``spend_*`` the cost of the jobs of a month. A trigger inserts
changes, which are folded into the totals later. An updated counter would be a row lock, which a paused process could
hold.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Identity,
    Integer,
    Numeric,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
    func,
)

from headrace.store.schema.tables import metadata

# Limits of the tenant (``api_key_id`` is null) or of one key. Both the operator's row and the tenant's own row hold;
# a null value is no limit.
limit_overrides = Table(
    "limit_overrides",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("api_key_id", String, ForeignKey("api_keys.id")),
    Column("set_by", String, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("input_tokens_per_minute", BigInteger),
    Column("concurrent_jobs", BigInteger),
    Column("queued_tokens", BigInteger),
    Column("monthly_cost", Numeric),
    Column("live_batches", BigInteger),
    # For each API process.
    Column("concurrent_streams", BigInteger),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("set_by IN ('operator', 'tenant')", name="set_by_known"),
    UniqueConstraint("tenant_id", "api_key_id", "set_by", postgresql_nulls_not_distinct=True),
)

# ``queue`` names the model version, so the tokens have a price. ``api_key_id`` is empty if the key is not known.
open_changes = Table(
    "open_changes",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("api_key_id", String, nullable=False),
    Column("queue", String, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    # Prompt and ``max_tokens`` of the queued jobs.
    Column("queued_tokens", BigInteger, nullable=False),
    # Prompt tokens of all open jobs, and the most that they may generate.
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
)

open_totals = Table(
    "open_totals",
    metadata,
    Column("tenant_id", String, nullable=False),
    Column("api_key_id", String, nullable=False),
    Column("queue", String, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    Column("queued_tokens", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "api_key_id", "queue"),
)

spend_changes = Table(
    "spend_changes",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("api_key_id", String, nullable=False),
    # The first day of the month, in UTC.
    Column("month", Date, nullable=False),
    Column("cost", Numeric, nullable=False),
)

spend_totals = Table(
    "spend_totals",
    metadata,
    Column("tenant_id", String, nullable=False),
    Column("api_key_id", String, nullable=False),
    Column("month", Date, nullable=False),
    Column("cost", Numeric, nullable=False),
    PrimaryKeyConstraint("tenant_id", "api_key_id", "month"),
)

# The heartbeats of the API processes: while Redis is away they divide the limits by their number.
api_processes = Table(
    "api_processes",
    metadata,
    Column("id", String, primary_key=True),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

# The heartbeats of the workers, by which a submission finds workers of its model version: see ``store.db.presence``.
worker_processes = Table(
    "worker_processes",
    metadata,
    Column("id", String, primary_key=True),
    Column("queue", String, nullable=False),
    # The most tokens (prompt and ``max_tokens``) of one request; null: the version's context window.
    Column("capacity_tokens", Integer),
    # Requests that run together; null: not reported.
    Column("slots", Integer),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

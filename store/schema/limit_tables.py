"""The tables of limits: what was set for tenants and keys, and what of it is used, kept by triggers.

``open_*`` count the jobs that are queued or run, ``spend_*`` what the jobs of a month have cost. Of both the changes
are inserted only, by the statement that makes them, and added up later: a counter that is updated would be a lock that
a paused process could hold.
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

from store.schema.tables import metadata

# Of the tenant where ``api_key_id`` is null, of that key where it is not. What the operator set and what the tenant set
# for itself hold both; null is no limit of theirs.
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
    # Of one API process.
    Column("concurrent_streams", BigInteger),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("set_by IN ('operator', 'tenant')", name="set_by_known"),
    UniqueConstraint("tenant_id", "api_key_id", "set_by", postgresql_nulls_not_distinct=True),
)

# ``queue`` is a model version's, so the tokens can be priced; ``api_key_id`` is empty where none is known.
open_changes = Table(
    "open_changes",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("api_key_id", String, nullable=False),
    Column("queue", String, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    # Prompt and ``max_tokens`` of those that are queued.
    Column("queued_tokens", BigInteger, nullable=False),
    # Of all that are open: what they were given, and the most that they may answer.
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
    # Its first day, in UTC.
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

# The API processes that live, so that each knows how many share a limit while Redis is away.
api_processes = Table(
    "api_processes",
    metadata,
    Column("id", String, primary_key=True),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

# The workers that live, so that a submission knows who serves its model version: see ``store.db.presence``.
worker_processes = Table(
    "worker_processes",
    metadata,
    Column("id", String, primary_key=True),
    Column("queue", String, nullable=False),
    # Prompt and ``max_tokens`` together that one request may have; null: as many as the version's context window.
    Column("capacity_tokens", Integer),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

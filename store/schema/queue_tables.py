"""Tables of the queues: what waits in each, how fast it is served, and how many workers it should have."""

from sqlalchemy import BigInteger, Column, Double, Identity, Integer, PrimaryKeyConstraint, SmallInteger, String, Table
from sqlalchemy.dialects.postgresql import JSONB

from headrace.store.schema.tables import metadata, timestamp

# A trigger on ``jobs`` inserts a row for the jobs that join or leave a queue, so that jobs need not be counted. Rows
# are never updated: an updated counter would be a row lock, which a paused process could hold.
queue_changes = Table(
    "queue_changes",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("queue", String, nullable=False),
    Column("tenant_id", String, nullable=False),
    Column("class_rank", SmallInteger, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    # The part of them that a worker started.
    Column("started_jobs", BigInteger, nullable=False),
    Column("started_tokens", BigInteger, nullable=False),
)

# The sums of the changes that the dispatcher has folded.
queue_totals = Table(
    "queue_totals",
    metadata,
    Column("queue", String, nullable=False),
    Column("tenant_id", String, nullable=False),
    Column("class_rank", SmallInteger, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    PrimaryKeyConstraint("queue", "tenant_id", "class_rank"),
)

# The service rate of a queue, as the dispatcher measured it.
queue_rates = Table(
    "queue_rates",
    metadata,
    Column("queue", String, primary_key=True),
    Column("jobs_per_s", Double, nullable=False),
    Column("tokens_per_s", Double, nullable=False),
    timestamp("measured_at", required=True),
)

# The workers that each queue should have: see ``store.scheduling.scale_decisions``.
queue_scaling = Table(
    "queue_scaling",
    metadata,
    Column("queue", String, primary_key=True),
    Column("replicas", Integer, nullable=False),
    Column("reason", String, nullable=False),
    timestamp("decided_at", required=True),
    Column("history", JSONB, nullable=False),
)

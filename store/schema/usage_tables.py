"""The tables of the usage ledger: tokens and cost of each ended job, and the prices."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    func,
    text,
)

from headrace.store.schema.tables import metadata

# Per million tokens. A version without a row has no known price.
model_prices = Table(
    "model_prices",
    metadata,
    Column("model", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("input", Numeric, nullable=False),
    Column("cached_input", Numeric, nullable=False),
    Column("output", Numeric, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("model", "version"),
    ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
    CheckConstraint("input >= 0 AND cached_input >= 0 AND output >= 0", name="not_negative"),
)

# One row for each ended job that was computed at least in part. No foreign key: the row outlives the job. Old rows are
# summed by day (``usage_days``), and the day's partition is dropped then. ``job_terminal`` lets a job end once.
usage_ledger = Table(
    "usage_ledger",
    metadata,
    Column("job_id", String, nullable=False),
    Column("tenant_id", String, nullable=False),
    Column("api_key_id", String),
    Column("project_id", String),
    Column("user_id", String),
    Column("task", String, nullable=False),
    Column("model", String, nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("class_rank", SmallInteger, nullable=False),
    Column("state", String, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("output_tokens", BigInteger, nullable=False),
    # Null if there was no price when the job ended.
    Column("cost", Numeric),
    Column("at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("job_id", "at"),
    Index(None, "tenant_id", "at"),
    postgresql_partition_by="RANGE (at)",
)

# The sums of a day's rows of the ledger, grouped by everything that usage is counted by. ``at`` is the beginning of the
# day in UTC, ``alike`` a digest of the grouping columns, which follow it.
usage_days = Table(
    "usage_days",
    metadata,
    Column("tenant_id", String, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("alike", String, nullable=False),
    Column("api_key_id", String),
    Column("project_id", String),
    Column("user_id", String),
    Column("task", String, nullable=False),
    Column("model", String, nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("class_rank", SmallInteger, nullable=False),
    Column("num_jobs", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost", Numeric, nullable=False),
    PrimaryKeyConstraint("tenant_id", "at", "alike"),
)

"""The tables of the usage ledger: what each ended job used and cost, and the prices by which that was counted."""

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

from store.schema.tables import metadata

# Per million tokens. A version without a row costs nothing that is known.
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

# One row for each job that ended and was computed at all. It outlives the job, so it names it without a reference.
# Old rows are added up by the day (``usage_days``).
usage_ledger = Table(
    "usage_ledger",
    metadata,
    Column("job_id", String, primary_key=True),
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
    Index(None, "tenant_id", "at"),
)

# What the lines of a day came to once they were added up: one row for those that are alike in all that usage is counted
# by. ``at`` is the day's beginning in UTC, ``alike`` a digest of the columns after it.
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

"""The table of schedules."""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, ForeignKey, Index, String, Table, text
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.dialects.postgresql import JSONB

from headrace.store.schema.tables import metadata, timestamp

schedules = Table(
    "schedules",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("cron", String, nullable=False),
    Column("zone", String, nullable=False),
    # What each run is: {"job": …} or {"batch": …}, as it was sent; sealed if there are keys.
    Column("definition", JSONB, nullable=False),
    Column("may_overlap", Boolean, nullable=False),
    Column("missed", String, nullable=False),
    # The key whose rights the runs have, and for which their usage is counted.
    Column("api_key_id", String, nullable=False),
    # The next tick; null while it is paused. It moves once the run of the tick is stored.
    timestamp("next_at"),
    # The last tick that had a run, and the id of its job or batch.
    timestamp("last_at"),
    Column("last_run_id", String),
    Column("num_runs", BigInteger, nullable=False, server_default=text("0")),
    Column("num_skipped", BigInteger, nullable=False, server_default=text("0")),
    # Why the last tick had no run: a code and a sentence; null if it had one.
    Column("last_error", JSONB),
    timestamp("created_at", required=True),
    CheckConstraint("missed IN ('skip', 'last', 'all')", name="missed_known"),
    Unique("tenant_id", "name"),
    Index("ix_schedules_due", "next_at", postgresql_where=text("next_at IS NOT NULL")),
)

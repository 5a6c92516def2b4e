"""The tables of rollouts. The rules are those of ``store.schema.tables``."""

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, String, Table, text
from sqlalchemy.dialects.postgresql import JSONB

from headrace.store.schema.tables import metadata, timestamp

_ACTIVE = "state IN ('running', 'paused')"

# Rollouts are kept: jobs name them, and a version that was rolled back is known by them. No foreign key to versions,
# so that a version of an ended rollout can be deleted.
rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String, primary_key=True),
    # The name of a model, or the id of a pipeline.
    Column("model", String, nullable=False),
    Column("kind", String, nullable=False, server_default="model"),
    Column("alias", String, nullable=False),
    Column("stable_version", Integer, nullable=False),
    Column("candidate_version", Integer, nullable=False),
    Column("mode", String, nullable=False),
    Column("sticky_key", String, nullable=False),
    # A list of ``features.rollouts.rollouts.Step``.
    Column("steps", JSONB, nullable=False),
    # The judge's bounds, as the rollout was started with.
    Column("bounds", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("state", String, nullable=False, server_default="running"),
    Column("current_step", Integer, nullable=False, server_default=text("0")),
    timestamp("step_since", required=True),
    timestamp("started_at", required=True),
    Column("started_by", String, nullable=False),
    timestamp("paused_at"),
    timestamp("ended_at"),
    Column("reason", String),
    # The judge's last verdict and a bounded history.
    Column("evidence", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    # Raised by each change of state, step or reason; the ETag of the API.
    Column("revision", Integer, nullable=False, server_default=text("1")),
    CheckConstraint("kind IN ('model', 'pipeline')", name="kind_known"),
    CheckConstraint("mode IN ('canary', 'shadow')", name="mode_known"),
    CheckConstraint("sticky_key IN ('tenant', 'user', 'conversation', 'job')", name="sticky_key_known"),
    CheckConstraint("state IN ('running', 'paused', 'promoted', 'aborted', 'rolled_back')", name="state_known"),
    CheckConstraint(f"(ended_at IS NULL) = ({_ACTIVE})", name="ended_has_time"),
    Index("uq_rollouts_active", "model", "alias", unique=True, postgresql_where=text(_ACTIVE)),
    Index("ix_rollouts_ended_at", "ended_at"),
)

# What a job of a candidate is on the stable version, if that is not the same. The payload is sealed as that of the job.
job_fallbacks = Table(
    "job_fallbacks",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    Column("cost_tokens", Integer, nullable=False),
)

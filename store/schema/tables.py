"""The tables of tenants, jobs and queues, as SQLAlchemy Core metadata, which Alembic compares with the database.

Only ``store/`` and ``migrations/env.py`` import tables. Every row of a tenant has its ``tenant_id``. All times are the
database's, with time zone.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from headrace.store.schema.job_states import JobState

# The newest revision under ``migrations/versions``. A process refuses to start on an older schema.
REVISION = "0112"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def timestamp(name: str, *, required: bool = False) -> Column[object]:
    """Return a timestamp column; a required one defaults to the database's now."""
    if required:
        return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())
    return Column(name, DateTime(timezone=True))


def of_its_tenant(column: str, table: str) -> ForeignKeyConstraint:
    """Return a foreign key to a row of the same tenant, with cascading deletes. It bypasses row-level security."""
    return ForeignKeyConstraint(["tenant_id", column], [f"{table}.tenant_id", f"{table}.id"], ondelete="CASCADE")


def _one_of(column: str, values: list[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


tenants = Table(
    "tenants",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("webhook_secret", String, nullable=False),
    timestamp("created_at", required=True),
    # While this is set the tenant's keys are refused; accepted jobs run to their end.
    timestamp("disabled_at"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("scopes", ARRAY(String), nullable=False),
    # The names of the allowed models; null: every model.
    Column("models", ARRAY(String)),
    # The key that replaced it in a rotation.
    Column("replaced_by", String),
    timestamp("created_at", required=True),
    timestamp("expires_at"),
    timestamp("revoked_at"),
    # To the minute.
    timestamp("last_used_at"),
    Index(None, "tenant_id"),
)

_STORED_CHAT = "is_stored_chat AND state = 'succeeded' AND output_purged_at IS NULL"
_ROUTED = "rollout_id IS NOT NULL"

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("task", String, nullable=False),
    Column("state", String, nullable=False, server_default=JobState.QUEUED),
    Column("model", String, nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("queue", String, nullable=False),
    Column("class_rank", SmallInteger, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    # Prompt and ``max_tokens`` together; the fair order and the queue limits count it.
    Column("cost_tokens", Integer, nullable=False, server_default=text("0")),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("webhook", JSONB),
    # Fencing: raised by every claim; a write that carries an older epoch matches no row.
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer, nullable=False),
    # The number of workers that died while they ran this job, and whether it must run alone next time.
    Column("crashes", SmallInteger, nullable=False, server_default=text("0")),
    Column("is_suspect", Boolean, nullable=False, server_default=text("false")),
    # The fingerprint of the body, if the client may repeat it without an Idempotency-Key.
    Column("fingerprint", String),
    # The number of requests that wait for its answer: the first one and its repetitions.
    Column("callers", SmallInteger, nullable=False, server_default=text("1")),
    # The usage is counted for the key, the project and the user as well as for the tenant.
    Column("api_key_id", String),
    Column("project_id", String),
    Column("user_id", String),
    Column("owner", String),
    timestamp("lease_expires_at"),
    # When a hint for this job was last put into Redis; null while it waits its turn in Postgres.
    timestamp("announced_at"),
    timestamp("cancel_requested_at"),
    timestamp("deadline_at"),
    # It waits in the queue of nobody until then: see ``store.jobs.sweeps.start_due``. Null: it need not wait.
    timestamp("start_after"),
    timestamp("created_at", required=True),
    timestamp("started_at"),
    timestamp("completed_at"),
    Column("output", JSONB),
    Column("error", JSONB),
    Column("usage", JSONB),
    # When its contents were purged: see ``store.jobs.erasure``.
    timestamp("input_purged_at"),
    timestamp("output_purged_at"),
    # Purge its contents as soon as it has ended: its owner has deleted it, or asked not to store it.
    Column("purge_when_ended", Boolean, nullable=False, server_default=text("false")),
    # It is listed among the stored chat completions.
    Column("is_stored_chat", Boolean, nullable=False, server_default=text("false")),
    # The active rollout of its alias when it was accepted, on either side; null for ``name@3`` and for other aliases.
    Column("rollout_id", String),
    # Of a job of a pipeline: the number of the version that has its steps.
    Column("pipeline_version", Integer),
    # The epoch of the last attempt of another version; no attempt continues it or an earlier one. Null: none.
    Column("restarts_after", BigInteger),
    # What the response cache did for it (``store.schema.job_states``), and the job whose answer it gets.
    Column("cache", String),
    Column("cache_source", String),
    # The parent of the spans of workers and of the dispatcher: see ``store.tracing.tracing``.
    Column("traceparent", String),
    # Of a step: its flow, its name, and the names of the steps that must have succeeded before it.
    Column("parent_id", String),
    Column("step", String),
    Column("needs", ARRAY(String)),
    # Of a flow: the step whose output and stream are its own.
    Column("answer_id", String),
    CheckConstraint(_one_of("state", list(JobState)), name="state_known"),
    CheckConstraint(
        "(state = 'running') = (owner IS NOT NULL AND lease_expires_at IS NOT NULL)", name="running_has_lease"
    ),
    # Unique, for the foreign keys of ``of_its_tenant``.
    Index("uq_jobs_tenant_id_id", "tenant_id", "id", unique=True),
    Index("ix_jobs_tenant_id_state_id", "tenant_id", "state", "id"),
    Index(
        "ix_jobs_waiting",
        "queue",
        "class_rank",
        "tenant_id",
        "priority",
        "deadline_at",
        "id",
        postgresql_where=text("state = 'queued' AND announced_at IS NULL AND NOT is_suspect"),
    ),
    Index("ix_jobs_suspect", "queue", "id", postgresql_where=text("state = 'queued' AND is_suspect")),
    Index(
        "ix_jobs_announced",
        "queue",
        "announced_at",
        postgresql_where=text("state = 'queued' AND announced_at IS NOT NULL"),
    ),
    Index("ix_jobs_lease", "lease_expires_at", postgresql_where=text("state = 'running'")),
    Index("ix_jobs_deadline", "deadline_at", postgresql_where=text("state IN ('queued', 'running')")),
    Index("ix_jobs_queued", "queue", "created_at", postgresql_where=text("state = 'queued'")),
    Index(
        "ix_jobs_start_after",
        "start_after",
        postgresql_where=text("state = 'queued' AND queue = 'cache' AND start_after IS NOT NULL AND task <> 'flow'"),
    ),
    Index("ix_jobs_fingerprint", "tenant_id", "fingerprint", postgresql_where=text("fingerprint IS NOT NULL")),
    Index(
        "ix_jobs_input_kept",
        "tenant_id",
        "completed_at",
        postgresql_where=text("completed_at IS NOT NULL AND input_purged_at IS NULL"),
    ),
    Index(
        "ix_jobs_output_kept",
        "tenant_id",
        "completed_at",
        postgresql_where=text("completed_at IS NOT NULL AND output_purged_at IS NULL"),
    ),
    Index(
        "ix_jobs_purge_when_ended",
        "completed_at",
        postgresql_where=text("purge_when_ended AND completed_at IS NOT NULL AND output_purged_at IS NULL"),
    ),
    Index("ix_jobs_sharers", "cache_source", postgresql_where=text("state = 'queued' AND cache_source IS NOT NULL")),
    Index("ix_jobs_steps", "parent_id", "id", postgresql_where=text("parent_id IS NOT NULL")),
    Index("ix_jobs_stored_chats", "tenant_id", "id", postgresql_where=text(_STORED_CHAT)),
    Index("ix_jobs_stored_chats_of_model", "tenant_id", "model", "id", postgresql_where=text(_STORED_CHAT)),
    Index("ix_jobs_rollout_queued", "rollout_id", "id", postgresql_where=text(f"state = 'queued' AND {_ROUTED}")),
    Index(
        "ix_jobs_rollout_accepted",
        "rollout_id",
        "model_version",
        "created_at",
        postgresql_where=text(_ROUTED),
    ),
    Index(
        "ix_jobs_rollout_ended",
        "rollout_id",
        "model_version",
        "completed_at",
        postgresql_where=text(f"completed_at IS NOT NULL AND {_ROUTED}"),
    ),
    Index(
        "ix_jobs_empty",
        "completed_at",
        postgresql_where=text("input_purged_at IS NOT NULL AND output_purged_at IS NOT NULL"),
    ),
)

# It lies in partitions by day, as ``job_events`` does, and is dropped with its day: see ``store.jobs.days``.
job_terminal = Table(
    "job_terminal",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    timestamp("at", required=True),
    CheckConstraint(_one_of("state", [s for s in JobState if s.is_terminal]), name="state_terminal"),
    postgresql_partition_by="RANGE (job_id)",
)

# The frames of the attempt that ended the job, so that a stream can be read again after Redis has forgotten it.
job_streams = Table(
    "job_streams",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("deltas", JSONB, nullable=False),
    # Stored, so that a reader of the job row need not unpack the deltas to count them.
    Column("num_deltas", Integer, nullable=False),
    # The attempts of the deltas: see ``store.streams.checkpoints``.
    Column("lineage", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    # Of each delta's tokens: see ``store.streams.checkpoints``. Null if the job did not ask for them.
    Column("logprobs", JSONB),
)

# The deltas of an attempt that was released, for the next attempt to continue.
job_checkpoints = Table(
    "job_checkpoints",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("deltas", JSONB, nullable=False),
    Column("token_ids", JSONB, nullable=False),
    Column("lineage", JSONB, nullable=False),
    Column("logprobs", JSONB),
    Column("first_token_s", Float),
)

# Jobs that failed because their workers kept dying or their attempts ran out. A replay is a new job.
dead_letters = Table(
    "dead_letters",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("queue", String, nullable=False),
    Column("code", String, nullable=False),
    timestamp("at", required=True),
    Column("replayed_as", String),
    timestamp("replayed_at"),
    of_its_tenant("job_id", "jobs"),
    Index(None, "tenant_id", "job_id"),
)

# A queue without a row is open.
queue_controls = Table(
    "queue_controls",
    metadata,
    Column("queue", String, primary_key=True),
    timestamp("paused_at", required=True),
    Column("paused_by", String, nullable=False),
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", BigInteger, Identity(), nullable=False),
    Column("job_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("detail", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    # clock_timestamp, not now(): events of one transaction keep their order and distance.
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    PrimaryKeyConstraint("job_id", "id"),
    postgresql_partition_by="RANGE (job_id)",
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker", String, nullable=False),
    timestamp("started_at", required=True),
    timestamp("ended_at"),
    Column("outcome", String),
    Column("error", JSONB),
    PrimaryKeyConstraint("job_id", "epoch"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("route", String, nullable=False),
    Column("key", String, nullable=False),
    Column("fingerprint", String, nullable=False),
    Column("job_id", String, nullable=False),
    timestamp("created_at", required=True),
    PrimaryKeyConstraint("tenant_id", "route", "key"),
    of_its_tenant("job_id", "jobs"),
    Index(None, "created_at"),
    Index(None, "job_id"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("tenant_id", String),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("resource", String, nullable=False),
    Column("detail", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    # SHA-256 in hex of the resource before and after, if it is more than a name.
    Column("before_hash", String),
    Column("after_hash", String),
    Column("request_id", String),
    # Of the caller, or user@host of the process.
    Column("address", String),
    timestamp("at", required=True),
    # The tenant's hash chain, written by a trigger: see ``features.audit``. ``version``: of the canonical form.
    Column("seq", BigInteger, nullable=False),
    Column("version", SmallInteger, nullable=False, server_default=text("1")),
    Column("prev_hash", String, nullable=False),
    Column("hash", String, nullable=False),
    UniqueConstraint("tenant_id", "seq", postgresql_nulls_not_distinct=True),
    Index(None, "tenant_id", "id"),
)

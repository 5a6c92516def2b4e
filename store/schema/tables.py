"""The tables, as SQLAlchemy Core metadata: what Alembic compares against and what ``store``'s statements name.

No file outside ``store/`` and ``migrations/env.py`` imports this one. Every row that belongs to someone carries
``tenant_id``. All times are the database's, with time zone.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
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

from store.schema.job_states import JobState

# The newest revision under ``migrations/versions``; a process refuses to start on an older schema.
REVISION = "0027"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _time(name: str, *, required: bool = False) -> Column[object]:
    """A timestamp column; a required one defaults to the database's now."""
    if required:
        return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())
    return Column(name, DateTime(timezone=True))


def of_its_tenant(column: str, table: str) -> ForeignKeyConstraint:
    """A reference to a row of the same tenant's, which goes with that row. Row-level security does not look there."""
    return ForeignKeyConstraint(["tenant_id", column], [f"{table}.tenant_id", f"{table}.id"], ondelete="CASCADE")


def _one_of(column: str, values: list[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


tenants = Table(
    "tenants",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("webhook_secret", String, nullable=False),
    _time("created_at", required=True),
    # Its keys open nothing while this is set; what was accepted before runs to its end.
    _time("disabled_at"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("scopes", ARRAY(String), nullable=False),
    # The models that it may ask for, by name; null: every model.
    Column("models", ARRAY(String)),
    # The key that takes its place since it was rotated.
    Column("replaced_by", String),
    _time("created_at", required=True),
    _time("expires_at"),
    _time("revoked_at"),
    # To the minute.
    _time("last_used_at"),
    Index(None, "tenant_id"),
)

# What the API needs of a model (tokenizer, chat template), by digest, so that an API host needs no model folder.
model_files = Table(
    "model_files",
    metadata,
    Column("digest", String, primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("name", String, primary_key=True),
    Column("task", String, nullable=False),
    _time("created_at", required=True),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("model", String, ForeignKey("models.name"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("runner", String, nullable=False),
    Column("source", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("dtype", String, nullable=False),
    Column("context_window", Integer, nullable=False),
    Column("files", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    _time("created_at", required=True),
    _time("retired_at"),
    PrimaryKeyConstraint("model", "version"),
    CheckConstraint("version > 0", name="version_positive"),
)

# How a version's tokens are chosen where a request does not say, as the operator set it: see ``store.registry.models``.
model_sampling = Table(
    "model_sampling",
    metadata,
    Column("model", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("sampling", JSONB, nullable=False),
    _time("updated_at", required=True),
    PrimaryKeyConstraint("model", "version"),
    ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model", String, nullable=False),
    Column("alias", String, nullable=False),
    Column("version", Integer, nullable=False),
    _time("updated_at", required=True),
    PrimaryKeyConstraint("model", "alias"),
    ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
)

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
    # Prompt and ``max_tokens`` together: what fair order and the bounds of the queue count.
    Column("cost_tokens", Integer, nullable=False, server_default=text("0")),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("webhook", JSONB),
    # Fencing: raised by every claim; a write that carries an older epoch matches no row.
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer, nullable=False),
    # How often a worker died with this job in its hands, and whether it must next run alone because of that.
    Column("crashes", SmallInteger, nullable=False, server_default=text("0")),
    Column("is_suspect", Boolean, nullable=False, server_default=text("false")),
    # Of the body, where the client may send the same one again without an Idempotency-Key.
    Column("fingerprint", String),
    # How many requests wait for its answer, where that is what it is for: those sent again, with the first.
    Column("callers", SmallInteger, nullable=False, server_default=text("1")),
    # Whom its usage is counted for, beside the tenant: which key asked, and for which project and user of theirs.
    Column("api_key_id", String),
    Column("project_id", String),
    Column("user_id", String),
    Column("owner", String),
    _time("lease_expires_at"),
    # When a hint for this job was last put into Redis; null while it waits its turn in Postgres.
    _time("announced_at"),
    _time("cancel_requested_at"),
    _time("deadline_at"),
    _time("created_at", required=True),
    _time("started_at"),
    _time("completed_at"),
    Column("output", JSONB),
    Column("error", JSONB),
    Column("usage", JSONB),
    # Since when its contents are gone: see ``store.retention.erasure``.
    _time("input_purged_at"),
    _time("output_purged_at"),
    # They go as soon as it has ended: its owner has deleted it before, or did not want it stored.
    Column("purge_when_ended", Boolean, nullable=False, server_default=text("false")),
    CheckConstraint(_one_of("state", list(JobState)), name="state_known"),
    CheckConstraint(
        "(state = 'running') = (owner IS NOT NULL AND lease_expires_at IS NOT NULL)", name="running_has_lease"
    ),
    # Unique, so that what names a job can name its tenant with it: see ``of_its_tenant``.
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
    Index(
        "ix_jobs_empty",
        "completed_at",
        postgresql_where=text("input_purged_at IS NOT NULL AND output_purged_at IS NOT NULL"),
    ),
)

job_terminal = Table(
    "job_terminal",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("state", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    _time("at", required=True),
    CheckConstraint(_one_of("state", [s for s in JobState if s.is_terminal]), name="state_terminal"),
)

# The frames of the attempt that ended the job, so that a stream can be read again after Redis has forgotten it.
job_streams = Table(
    "job_streams",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("deltas", JSONB, nullable=False),
    # Beside the deltas, so that a reader of the job row need not unpack them to know how many there are.
    Column("num_deltas", Integer, nullable=False),
    # Which attempts the deltas came from: see ``store.streams.checkpoints``.
    Column("lineage", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    # Of each delta's tokens: see ``store.payloads.logprobs``. Null where nobody asked.
    Column("logprobs", JSONB),
)

# What an attempt that was handed back had emitted, for the next one to go on from.
job_checkpoints = Table(
    "job_checkpoints",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("deltas", JSONB, nullable=False),
    Column("token_ids", JSONB, nullable=False),
    Column("lineage", JSONB, nullable=False),
    Column("logprobs", JSONB),
)

# Jobs that failed because workers kept dying or attempts ran out; a replay is a new job.
dead_letters = Table(
    "dead_letters",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("queue", String, nullable=False),
    Column("code", String, nullable=False),
    _time("at", required=True),
    Column("replayed_as", String),
    _time("replayed_at"),
    of_its_tenant("job_id", "jobs"),
    Index(None, "tenant_id", "job_id"),
)

# A queue without a row is open.
queue_controls = Table(
    "queue_controls",
    metadata,
    Column("queue", String, primary_key=True),
    _time("paused_at", required=True),
    Column("paused_by", String, nullable=False),
)

# Written by a trigger on ``jobs`` for whatever joins or leaves the queued ones, so that nobody has to count them.
# Inserted only, never updated: a counter that is updated would be a lock that a paused process could hold.
queue_changes = Table(
    "queue_changes",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("queue", String, nullable=False),
    Column("tenant_id", String, nullable=False),
    Column("class_rank", SmallInteger, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    # Those of them that a worker started.
    Column("started_jobs", BigInteger, nullable=False),
    Column("started_tokens", BigInteger, nullable=False),
)

# The changes that the dispatcher has added up.
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

# How fast a queue was served lately, by the dispatcher's measurement.
queue_rates = Table(
    "queue_rates",
    metadata,
    Column("queue", String, primary_key=True),
    Column("jobs_per_s", Double, nullable=False),
    Column("tokens_per_s", Double, nullable=False),
    _time("measured_at", required=True),
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("kind", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("detail", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    # clock_timestamp, not now(): events of one transaction keep their order and distance.
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Index(None, "job_id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker", String, nullable=False),
    _time("started_at", required=True),
    _time("ended_at"),
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
    _time("created_at", required=True),
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
    # SHA-256 in hex of the resource as it was and became, where there is more to it than its name.
    Column("before_hash", String),
    Column("after_hash", String),
    Column("request_id", String),
    # Of the caller, or user@host of the process.
    Column("address", String),
    _time("at", required=True),
    # The tenant's hash chain, made by a trigger: see ``store.audit.hash_chain``. ``version`` is of the canonical form.
    Column("seq", BigInteger, nullable=False),
    Column("version", SmallInteger, nullable=False, server_default=text("1")),
    Column("prev_hash", String, nullable=False),
    Column("hash", String, nullable=False),
    UniqueConstraint("tenant_id", "seq", postgresql_nulls_not_distinct=True),
    Index(None, "tenant_id", "id"),
)

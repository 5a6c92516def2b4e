"""The tables of the model registry. The rules are those of ``store.schema.tables``."""

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from headrace.store.schema.tables import metadata, timestamp

# The files of a model that the API needs (tokenizer, chat template), so that an API host needs no model folder.
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
    timestamp("created_at", required=True),
    # The highest number of a deleted version, so that it is not given again.
    Column("last_version", Integer, nullable=False, server_default=text("0")),
    # ``store.registry.quality_report.QualityBound``; NULL: no version is refused for its quality.
    Column("quality_bound", JSONB),
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
    timestamp("created_at", required=True),
    timestamp("retired_at"),
    # ``store.registry.engine_spec.EngineSpec``; NULL: Headrace's own engine.
    Column("engine", JSONB),
    Column("task", String),
    # ``store.schema.version_states.VersionState``, as far as it is stored.
    Column("state", String, nullable=False, server_default=text("'ready'")),
    timestamp("state_at"),
    Column("state_reason", String),
    # ``store.registry.verification.VerificationReport``; NULL: never verified.
    Column("verification", JSONB),
    # ``store.registry.verification.GoldenAnswer``, several; NULL: none were given at registration.
    Column("golden", JSONB),
    # The worker that verifies the version now, and the end of its lease.
    Column("verifier", String),
    timestamp("verifying_until"),
    # The version that a LoRA adapter changes, or whose weights a version of the same model shares; NULL: none.
    Column("base_model", String),
    Column("base_version", Integer),
    # The version, ``name@3``, whose files this one has in another number format; NULL: it was registered otherwise.
    Column("quantized_from", String),
    # ``store.payloads.prompt_reference.DefaultTemplate``; NULL: none.
    Column("template", JSONB),
    PrimaryKeyConstraint("model", "version"),
    ForeignKeyConstraint(["base_model", "base_version"], ["model_versions.model", "model_versions.version"]),
    CheckConstraint("version > 0", name="version_positive"),
    CheckConstraint("state IN ('registered', 'ready', 'rejected')", name="state_known"),
)

# A version's default sampling parameters, as the operator set them: see ``store.registry.models``.
model_sampling = Table(
    "model_sampling",
    metadata,
    Column("model", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("sampling", JSONB, nullable=False),
    timestamp("updated_at", required=True),
    PrimaryKeyConstraint("model", "version"),
    ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model", String, nullable=False),
    Column("alias", String, nullable=False),
    Column("version", Integer, nullable=False),
    timestamp("updated_at", required=True),
    PrimaryKeyConstraint("model", "alias"),
    ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
)

# The reports of model hosts: see ``store.hosts.host_reports``.
model_hosts = Table(
    "model_hosts",
    metadata,
    Column("name", String, primary_key=True),
    timestamp("seen_at", required=True),
    Column("report", JSONB, nullable=False),
)

"""Policies of a tenant, by model, as numbered immutable versions. Their documents are not interpreted here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, NotFound
from headrace.store.json_text import dump_json

MAX_MODELS = 100
MAX_VERSIONS = 10_000
MAX_BYTES = 64 << 20
"""Maximum stored size of all policy versions of a tenant."""


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """One version of a policy. ``model``: as in ``store.payloads.job_payload.PinnedPolicy``."""

    model: str
    version: int
    document: dict[str, Any]
    created_at: datetime


# Locks the tenant's policies for the transaction, so that versions get different numbers. The database role of the API
# may not lock the tenant's row.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('headrace.policies ' || :tenant_id, 0))")
# The newest version of a policy.
_BEFORE = text("""
SELECT document FROM policies WHERE tenant_id = :tenant_id AND model = :model ORDER BY version DESC LIMIT 1
""")
# Number of policies and of versions, and their size.
_STORED = text("""
SELECT count(DISTINCT model), count(*), coalesce(sum(pg_column_size(document)), 0)
FROM policies WHERE tenant_id = :tenant_id
""")
# Adds the next version.
_PUT = text("""
INSERT INTO policies (tenant_id, model, version, document)
SELECT CAST(:tenant_id AS text), CAST(:model AS text), coalesce(max(version), 0) + 1, CAST(:document AS jsonb)
FROM policies WHERE tenant_id = :tenant_id AND model = :model
RETURNING model, version, document, created_at
""")


# The newest version for each model.
_NEWEST = text("""
SELECT DISTINCT ON (model) model, version, document, created_at
FROM policies WHERE tenant_id = :tenant_id ORDER BY model, version DESC
""")

# One version.
_VERSION = text("SELECT document FROM policies WHERE tenant_id = :tenant_id AND model = :model AND version = :version")


def put(db: Database, tenant_id: str, model: str, document: dict[str, Any], actor: str) -> StoredPolicy:
    """Store the next version of a tenant's policy for a model, with an audit entry of the hashes of both versions.

    Raises Conflict if the maximum is reached.
    """
    values = {"tenant_id": tenant_id, "model": model}
    with db.begin(tenant_id=tenant_id) as connection:
        connection.execute(_LOCK, values)
        before = connection.execute(_BEFORE, values).scalar_one_or_none()
        _check_limits(*connection.execute(_STORED, values).one(), is_new=before is None)
        row = connection.execute(_PUT, values | {"document": dump_json(document)}).mappings().one()
        detail = {"version": row["version"]}
        resource = f"policy:{model or '*'}"
        record(connection, tenant_id, actor, "policy.put", resource, detail, before=before, after=row["document"])
    return StoredPolicy(**row)


def _check_limits(models: int, versions: int, num_bytes: int, *, is_new: bool) -> None:
    if is_new and models >= MAX_MODELS:
        raise Conflict(f"{MAX_MODELS} models have a policy, which is the most: let one policy hold for every model")
    if versions >= MAX_VERSIONS or num_bytes >= MAX_BYTES:
        raise Conflict(
            f"the versions of all policies are {versions} with {num_bytes} bytes, and {MAX_VERSIONS} with {MAX_BYTES} "
            "are the most: no more can be put"
        )


def list_policies(db: Database, tenant_id: str) -> Sequence[StoredPolicy]:
    """Return the newest version of each of a tenant's policies, by model."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_NEWEST, {"tenant_id": tenant_id}).mappings().all()
    return [StoredPolicy(**row) for row in rows]


def get_version(db: Database, tenant_id: str, model: str, version: int) -> dict[str, Any]:
    """Return the document of a version, newest or not. Raises NotFound if this tenant has no such version."""
    values = {"tenant_id": tenant_id, "model": model, "version": version}
    with db.autocommit(tenant_id=tenant_id) as connection:
        document: dict[str, Any] | None = connection.execute(_VERSION, values).scalar_one_or_none()
    if document is None:
        raise NotFound(f"no policy for {model or 'every model'} with a version {version}")
    return document

"""Policies of a tenant, by model: numbered versions that never change. Knows nothing of what is in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from store.audit import record
from store.db import Database, dump_json
from store.errors import NotFound

EVERY_MODEL = ""


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """One version of a policy. ``model`` EVERY_MODEL is for every model that has none of its own."""

    model: str
    version: int
    document: dict[str, Any]
    created_at: datetime


# Two who set a policy at once get two numbers: the tenant's row is what they wait for.
# Not the tenant's row: who serves a tenant may not change it.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('headrace.policies ' || :tenant_id, 0))")
_BEFORE = text("""
SELECT document FROM policies WHERE tenant_id = :tenant_id AND model = :model ORDER BY version DESC LIMIT 1
""")
_PUT = text("""
INSERT INTO policies (tenant_id, model, version, document)
SELECT CAST(:tenant_id AS text), CAST(:model AS text), coalesce(max(version), 0) + 1, CAST(:document AS jsonb)
FROM policies WHERE tenant_id = :tenant_id AND model = :model
RETURNING model, version, document, created_at
""")


def put(db: Database, tenant_id: str, model: str, document: dict[str, Any], actor: str) -> StoredPolicy:
    """Store the next version of a tenant's policy for a model, with an audit row that tells the two by hashes."""
    values = {"tenant_id": tenant_id, "model": model}
    with db.begin(tenant_id=tenant_id) as connection:
        connection.execute(_LOCK, values)
        before = connection.execute(_BEFORE, values).scalar_one_or_none()
        row = connection.execute(_PUT, values | {"document": dump_json(document)}).mappings().one()
        detail = {"version": row["version"]}
        resource = f"policy:{model or '*'}"
        record(connection, tenant_id, actor, "policy.put", resource, detail, before=before, after=row["document"])
    return StoredPolicy(**row)


_NEWEST = text("""
SELECT DISTINCT ON (model) model, version, document, created_at
FROM policies WHERE tenant_id = :tenant_id ORDER BY model, version DESC
""")


def list_policies(db: Database, tenant_id: str) -> Sequence[StoredPolicy]:
    """Return the newest version of each of a tenant's policies, by model."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_NEWEST, {"tenant_id": tenant_id}).mappings().all()
    return [StoredPolicy(**row) for row in rows]


_VERSION = text("SELECT document FROM policies WHERE tenant_id = :tenant_id AND model = :model AND version = :version")


def get_version(db: Database, tenant_id: str, model: str, version: int) -> dict[str, Any]:
    """Return a version's document, in force or not; raise NotFound if this tenant has none by that number."""
    values = {"tenant_id": tenant_id, "model": model, "version": version}
    with db.autocommit(tenant_id=tenant_id) as connection:
        document: dict[str, Any] | None = connection.execute(_VERSION, values).scalar_one_or_none()
    if document is None:
        raise NotFound(f"no policy for {model or 'every model'} with a version {version}")
    return document

"""Vector stores of a tenant. Each has one model version, which makes the vectors of its passages and of its queries.

A store that was deleted or has expired is there for no caller. The batch keeper then deletes its rows in steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import RowMapping, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import NotFound
from headrace.store.ids import new_id
from headrace.store.json_text import dump_json

ROWS_AT_ONCE = 500
"""Passages that are deleted in one transaction."""

LOST_AFTER_S: Final = 600
"""A file whose job was not accepted within so many seconds has failed: the process that added it was lost."""

STATUS_JOIN: Final = """
LEFT JOIN jobs ON jobs.tenant_id = attached.tenant_id AND jobs.id = attached.job_id
"""

STATUS: Final = f"""CASE
    WHEN attached.completed_at IS NOT NULL THEN 'completed'
    WHEN attached.job_id IS NULL AND attached.created_at > now() - interval '{LOST_AFTER_S} seconds' THEN 'in_progress'
    WHEN jobs.state IN ('queued', 'running') THEN 'in_progress'
    WHEN jobs.state = 'cancelled' THEN 'cancelled'
    ELSE 'failed' END"""
"""``in_progress``, ``completed``, ``failed`` or ``cancelled``; needs ``STATUS_JOIN``."""


@dataclass(frozen=True, slots=True)
class StoreModel:
    """The model version of a store, and the numbers in each of its vectors."""

    name: str
    version: int
    dimensions: int


@dataclass(frozen=True, slots=True)
class VectorStore:
    """A vector store. ``num_files``: its files by their status. ``num_bytes``: texts and vectors of the passages."""

    id: str
    tenant_id: str
    name: str
    description: str | None
    metadata: dict[str, str]
    model: str
    model_version: int
    dimensions: int
    expires_days: int | None
    created_at: datetime
    last_active_at: datetime
    expires_at: datetime | None
    num_files: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0


_COLUMNS = """id, tenant_id, name, description, metadata, model, model_version, dimensions, expires_days, created_at,
    last_active_at, expires_at"""
IS_CURRENT = "tenant_id = :tenant_id AND deleted_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
_EXPIRES = "now() + make_interval(days => expires_days)"

_INSERT = text(f"""
INSERT INTO vector_stores (
    id, tenant_id, name, description, metadata, model, model_version, dimensions, expires_days, expires_at)
VALUES (:id, :tenant_id, :name, :description, CAST(:metadata AS jsonb), :model, :model_version, :dimensions,
    CAST(:expires_days AS int), now() + make_interval(days => CAST(:expires_days AS int)))
RETURNING {_COLUMNS}
""")

_GET = text(f"SELECT {_COLUMNS} FROM vector_stores WHERE id = :id AND {IS_CURRENT}")

_LIST = """
SELECT {columns} FROM vector_stores
WHERE {current} AND (CAST(:after AS text) IS NULL OR id {past} :after)
    AND (CAST(:before AS text) IS NULL OR id {ahead} :before)
ORDER BY id {order} LIMIT :limit
"""
_NEWEST_FIRST = text(_LIST.format(columns=_COLUMNS, current=IS_CURRENT, past="<", ahead=">", order="DESC"))
_OLDEST_FIRST = text(_LIST.format(columns=_COLUMNS, current=IS_CURRENT, past=">", ahead="<", order="ASC"))

_COUNTS = text(f"""
SELECT attached.store_id, {STATUS} AS status, count(*) AS num, CAST(sum(attached.num_bytes) AS bigint) AS num_bytes
FROM vector_store_files AS attached {STATUS_JOIN}
WHERE attached.tenant_id = :tenant_id AND attached.store_id = ANY(CAST(:ids AS text[]))
GROUP BY 1, 2
""")

# Changes the given fields of a store, and counts its life anew.
_UPDATE = text(f"""
UPDATE vector_stores SET
    name = COALESCE(CAST(:name AS text), name),
    metadata = COALESCE(CAST(:metadata AS jsonb), metadata),
    expires_days = CASE WHEN :sets_life THEN CAST(:expires_days AS int) ELSE expires_days END,
    last_active_at = now(),
    expires_at = now() + make_interval(
        days => CASE WHEN :sets_life THEN CAST(:expires_days AS int) ELSE expires_days END)
WHERE id = :id AND {IS_CURRENT}
RETURNING {_COLUMNS}
""")

# Notes a use, at most once a minute.
_TOUCH = text(f"""
UPDATE vector_stores SET last_active_at = now(), expires_at = {_EXPIRES}
WHERE id = :id AND {IS_CURRENT} AND last_active_at < now() - interval '1 minute'
""")

_DELETE = text(f"UPDATE vector_stores SET deleted_at = now() WHERE id = :id AND {IS_CURRENT} RETURNING name")

_ENDED = text("SELECT id, tenant_id FROM ended_vector_stores ORDER BY id LIMIT 1")

_DELETE_PASSAGES = text("""
DELETE FROM vector_store_passages
WHERE tenant_id = :tenant_id AND (store_id, file_id, position) IN (
    SELECT store_id, file_id, position FROM vector_store_passages
    WHERE tenant_id = :tenant_id AND store_id = :id LIMIT :limit)
""")

_DELETE_ROW = text("DELETE FROM vector_stores WHERE tenant_id = :tenant_id AND id = :id")


def create(
    db: Database,
    tenant_id: str,
    model: StoreModel,
    *,
    name: str = "",
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
    expires_days: int | None = None,
) -> VectorStore:
    """Add an empty store. It expires ``expires_days`` after its last use."""
    values = {
        "id": new_id("vs"),
        "tenant_id": tenant_id,
        "name": name,
        "description": description,
        "metadata": dump_json(dict(metadata or {})),
        "model": model.name,
        "model_version": model.version,
        "dimensions": model.dimensions,
        "expires_days": expires_days,
    }
    with db.begin(tenant_id=tenant_id) as connection:
        return VectorStore(**connection.execute(_INSERT, values).mappings().one())


def find(db: Database, tenant_id: str, store_id: str) -> VectorStore:
    """Return the store without the numbers of its files, which take a read of all its files. Raises as ``get``."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_GET, {"id": store_id, "tenant_id": tenant_id}).mappings().one_or_none()
    return _found(row, store_id)


def get(db: Database, tenant_id: str, store_id: str) -> VectorStore:
    """Return the store. Raises NotFound if this tenant has no such store, or it has expired."""
    return _counted(db, tenant_id, [find(db, tenant_id, store_id)])[0]


def list_stores(
    db: Database,
    tenant_id: str,
    *,
    limit: int,
    after: str | None = None,
    before: str | None = None,
    descending: bool = True,
) -> list[VectorStore]:
    """Return at most ``limit`` stores by age, newest first by default, between two ids."""
    values = {"tenant_id": tenant_id, "after": after, "before": before, "limit": limit}
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_NEWEST_FIRST if descending else _OLDEST_FIRST, values).mappings().all()
    return _counted(db, tenant_id, [VectorStore(**row) for row in rows])


def update(
    db: Database,
    tenant_id: str,
    store_id: str,
    *,
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
    sets_life: bool = False,
    expires_days: int | None = None,
) -> VectorStore:
    """Change the name and the metadata if they are given, and the expiry if ``sets_life``. Raises NotFound."""
    values = {
        "id": store_id,
        "tenant_id": tenant_id,
        "name": name,
        "metadata": None if metadata is None else dump_json(dict(metadata)),
        "sets_life": sets_life,
        "expires_days": expires_days,
    }
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_UPDATE, values).mappings().one_or_none()
    return _counted(db, tenant_id, [_found(row, store_id)])[0]


def touch(db: Database, tenant_id: str, store_id: str) -> None:
    """Count the life of a store from now on, because it is in use."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        connection.execute(_TOUCH, {"id": store_id, "tenant_id": tenant_id})


def delete(db: Database, tenant_id: str, store_id: str, *, actor: str) -> None:
    """Delete a store. Its passages are not found any more, and deleted later. Its files stay. Raises NotFound."""
    with db.begin(tenant_id=tenant_id) as connection:
        found = connection.execute(_DELETE, {"id": store_id, "tenant_id": tenant_id}).scalar_one_or_none()
        if found is None:
            raise not_found(store_id)
        record(connection, tenant_id, actor, "vector_store.deleted", store_id, {})


def remove_ended(db: Database, limit: int = ROWS_AT_ONCE) -> bool:
    """Delete at most ``limit`` passages of a store that was deleted or has expired, or its row if it has none.

    Returns False if there is no such store.
    """
    with db.autocommit() as connection:
        ended = connection.execute(_ENDED).one_or_none()
    if ended is None:
        return False
    values = {"id": ended.id, "tenant_id": ended.tenant_id, "limit": limit}
    with db.begin(tenant_id=ended.tenant_id) as connection:
        if connection.execute(_DELETE_PASSAGES, values).rowcount < limit:
            connection.execute(_DELETE_ROW, values)
    return True


def not_found(store_id: str) -> NotFound:
    """Return the error of a store that the tenant does not have."""
    return NotFound(f"no vector store {store_id[:80]}")


def _found(row: RowMapping | None, store_id: str) -> VectorStore:
    if row is None:
        raise not_found(store_id)
    return VectorStore(**row)


def _counted(db: Database, tenant_id: str, stores: Sequence[VectorStore]) -> list[VectorStore]:
    """Return the stores with the numbers of their files."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        values: dict[str, Any] = {"tenant_id": tenant_id, "ids": [one.id for one in stores]}
        rows = connection.execute(_COUNTS, values).all()
    by_id = {one.id: one for one in stores}
    nums: dict[str, int] = dict.fromkeys(by_id, 0)
    for row in rows:
        by_id[row.store_id].num_files[row.status] = row.num
        nums[row.store_id] += row.num_bytes
    return [VectorStore(**{**_fields(one), "num_bytes": nums[one.id]}) for one in stores]


def _fields(store: VectorStore) -> dict[str, Any]:
    return {name: getattr(store, name) for name in VectorStore.__slots__}

"""List, rename, disable and enable tenants. They are created in ``store.tenants.api_keys``, with the first key.

All keys of a disabled tenant are refused. Jobs that were accepted before run to their end and send their webhooks.
Batches start no more lines until the tenant is enabled again. Nothing is lost.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import IntegrityError

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.tenants.api_keys import check_tenant_name


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant, and the number of its keys that are in force."""

    id: str
    name: str
    created_at: datetime
    disabled_at: datetime | None
    num_keys: int


# All tenants, with the number of their keys in force.
_LIST = text("""
SELECT id, name, created_at, disabled_at, (
    SELECT count(*) FROM api_keys WHERE tenant_id = tenants.id AND revoked_at IS NULL
        AND (expires_at IS NULL OR expires_at > now())
) AS num_keys
FROM tenants ORDER BY name
""")


# A tenant by its name, locked.
_LOCK = text("SELECT id, disabled_at FROM tenants WHERE name = :name FOR NO KEY UPDATE")

# Disables a tenant, or enables it.
_SET_DISABLED = text("""
UPDATE tenants SET disabled_at = CASE WHEN :disabled THEN COALESCE(disabled_at, now()) END WHERE id = :id
""")


def list_tenants(db: Database) -> list[Tenant]:
    """Return every tenant, by name."""
    with db.autocommit() as connection:
        return [Tenant(**row) for row in connection.execute(_LIST).mappings()]


def list_ids(db: Database) -> list[str]:
    """Return the ids of all tenants."""
    with db.autocommit() as connection:
        return list(connection.execute(text("SELECT id FROM tenants")).scalars())


# The names of tenants.
_NAMES = text("SELECT id, name FROM tenants WHERE id = ANY(CAST(:ids AS text[]))")


def read_names(db: Database, ids: Collection[str]) -> dict[str, str]:
    """Return the names of these tenants by their ids."""
    if not ids:
        return {}
    with db.autocommit(tenant_ids=ids) as connection:
        return {row.id: row.name for row in connection.execute(_NAMES, {"ids": list(ids)})}


def rename(db: Database, name: str, new_name: str, *, actor: str) -> str:
    """Rename a tenant and return its id, which does not change.

    Raises NotFound, and InvalidRequest if the name is taken.
    """
    check_tenant_name(new_name)
    with db.begin() as connection:
        tenant = _lock(connection, name)
        try:
            values = {"id": tenant.id, "name": new_name}
            connection.execute(text("UPDATE tenants SET name = :name WHERE id = :id"), values)
        except IntegrityError:
            raise InvalidRequest(f"there is a tenant {new_name!r} already", param="name") from None
        detail = {"name": new_name, "was": name}
        record(connection, tenant.id, actor, "tenant.renamed", tenant.id, detail, before=name, after=new_name)
    return str(tenant.id)


def set_disabled(db: Database, name: str, *, disabled: bool, actor: str) -> str:
    """Disable a tenant, or enable it, and return its id. Does nothing if it already is. Raises NotFound."""
    with db.begin() as connection:
        tenant = _lock(connection, name)
        if (tenant.disabled_at is not None) != disabled:
            connection.execute(_SET_DISABLED, {"id": tenant.id, "disabled": disabled})
            action = "tenant.disabled" if disabled else "tenant.enabled"
            before, after = {"disabled": not disabled}, {"disabled": disabled}
            record(connection, tenant.id, actor, action, tenant.id, {"name": name}, before=before, after=after)
    return str(tenant.id)


def _lock(connection: Connection, name: str) -> Row[tuple[str, datetime | None]]:
    row = connection.execute(_LOCK, {"name": name}).one_or_none()
    if row is None:
        raise NotFound(f"no tenant {name!r}: `headrace tenants` lists the names", param="tenant")
    return row

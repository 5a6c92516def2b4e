"""The audit log: who did what to which resource. Written in the transaction of the deed, so that neither is without
the other. Knows no prompt and no secret: callers pass names and ids only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from store.db import Database, dump_json


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One deed."""

    id: int
    tenant_id: str | None
    actor: str
    action: str
    resource: str
    detail: dict[str, Any]
    request_id: str | None
    at: datetime


_RECORD = text("""
INSERT INTO audit_log (tenant_id, actor, action, resource, detail, request_id)
VALUES (:tenant_id, :actor, :action, :resource, CAST(:detail AS jsonb), :request_id)
""")


def record(
    connection: Connection,
    tenant_id: str | None,
    actor: str,
    action: str,
    resource: str,
    detail: Mapping[str, object],
    request_id: str | None = None,
) -> None:
    """Write one entry. ``tenant_id`` None is for what belongs to nobody, such as the model registry."""
    values = {"tenant_id": tenant_id, "actor": actor, "action": action, "resource": resource, "request_id": request_id}
    connection.execute(_RECORD, {**values, "detail": dump_json(dict(detail))})


_ENTRIES = text("""
SELECT id, tenant_id, actor, action, resource, detail, request_id, at
FROM audit_log WHERE tenant_id = :tenant_id ORDER BY id DESC LIMIT :limit
""")


def list_entries(db: Database, tenant_id: str, limit: int = 100) -> list[AuditEntry]:
    """Return the tenant's newest entries, newest first."""
    with db.autocommit() as connection:
        rows = connection.execute(_ENTRIES, {"tenant_id": tenant_id, "limit": limit}).mappings().all()
    return [AuditEntry(**row) for row in rows]

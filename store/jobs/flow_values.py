"""Reads what the references of a step refer to: the outputs of other steps of its flow."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import text

from store.db.database import Database
from store.encryption.vault import EncryptionContext

_OUTPUTS = text("""
SELECT id, step, output FROM jobs
WHERE tenant_id = :tenant_id AND parent_id = :flow_id AND step = ANY(CAST(:names AS text[])) AND state = 'succeeded'
""")


def read_outputs(db: Database, tenant_id: str, flow_id: str, names: Collection[str]) -> dict[str, Any]:
    """Return the outputs of these steps by name, as ``{"classify": {"output": {...}}}``. Raises CannotOpen."""
    values = {"tenant_id": tenant_id, "flow_id": flow_id, "names": list(names)}
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_OUTPUTS, values).all()
    return {
        row.step: {"output": db.vault.open(row.output, EncryptionContext(tenant_id, "jobs", "output", row.id))}
        for row in rows
    }

"""Reads what the references of a step refer to: the outputs of other steps of its flow."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.seal import SealContext

_OUTPUTS = text("""
SELECT id, step, task, output FROM jobs
WHERE tenant_id = :tenant_id AND parent_id = :flow_id AND step = ANY(CAST(:names AS text[])) AND state = 'succeeded'
""")


def read_outputs(db: Database, tenant_id: str, flow_id: str, names: Collection[str]) -> dict[str, Any]:
    """Return the outputs and tasks of these steps by name. Raises CannotOpen.

    ``{"classify": {"task": "classify", "output": {...}}}``
    """
    values = {"tenant_id": tenant_id, "flow_id": flow_id, "names": list(names)}
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_OUTPUTS, values).all()
    found = {}
    for row in rows:
        output = db.seal.open(row.output, SealContext(tenant_id, "jobs", "output", row.id))
        found[row.step] = {"task": row.task, "output": output}
    return found

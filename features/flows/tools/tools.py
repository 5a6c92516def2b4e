"""The tools of a tenant: create, read, replace, delete.

A definition is one sealed value: the URL may have a token, and the headers are secrets. A job that runs keeps the
schema that it was accepted with, and calls the URL that the tool has when the call is made.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import ValidationError
from sqlalchemy import RowMapping, text

from headrace.features.flows.tools.builtin import BUILT_IN
from headrace.features.flows.tools.tool_definition import Definition, McpServer, read_definition
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, InvalidRequest, NotFound
from headrace.store.ids import new_id
from headrace.store.json_text import dump_json
from headrace.store.payloads.server_tools import server_of
from headrace.store.seal import Seal, SealContext

MAX_TOOLS: Final = 100
"""Maximum number of a tenant."""


@dataclass(frozen=True, slots=True)
class StoredTool:
    """A tool of a tenant."""

    id: str
    tenant_id: str
    name: str
    definition: Definition
    created_at: datetime
    updated_at: datetime


_COLUMNS = "id, tenant_id, name, definition, created_at, updated_at"

# Adds a tool, unless the tenant has the name or the maximum number.
_CREATE = text(f"""
INSERT INTO tools (id, tenant_id, name, definition)
SELECT :id, CAST(:tenant_id AS varchar), :name, CAST(:definition AS jsonb)
WHERE (SELECT count(*) FROM tools WHERE tenant_id = CAST(:tenant_id AS varchar)) < :most
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING {_COLUMNS}
""")

# Whether the tenant has a tool with the name.
_HAS_NAME = text("SELECT EXISTS (SELECT FROM tools WHERE tenant_id = :tenant_id AND name = :name)")

# The tenant's tools, by name.
_LIST = text(f"SELECT {_COLUMNS} FROM tools WHERE tenant_id = :tenant_id ORDER BY name")

# Those of the tenant's tools that have these names.
_NAMED = text(f"SELECT {_COLUMNS} FROM tools WHERE tenant_id = :tenant_id AND name = ANY(CAST(:names AS varchar[]))")

# One tool.
_GET = text(f"SELECT {_COLUMNS} FROM tools WHERE tenant_id = :tenant_id AND id = :id")

# Replaces the definition of a tool.
_REPLACE = text(f"""
UPDATE tools SET definition = CAST(:definition AS jsonb), updated_at = now()
WHERE tenant_id = :tenant_id AND id = :id RETURNING {_COLUMNS}
""")

# Deletes a tool.
_DELETE = text("DELETE FROM tools WHERE tenant_id = :tenant_id AND id = :id RETURNING name")


def create(db: Database, tenant_id: str, name: str, definition: Definition, *, actor: str) -> StoredTool:
    """Add a tool. Raises Conflict if its name is taken or the maximum number is reached."""
    if name in BUILT_IN:
        raise Conflict(f"the name {name} is that of a tool that every organization has: take another")
    tool_id = new_id("tool")
    values = {"id": tool_id, "tenant_id": tenant_id, "name": name, "most": MAX_TOOLS}
    with db.begin(tenant_id=tenant_id) as connection:
        sealed = _sealed(db.seal, tenant_id, tool_id, definition)
        row = connection.execute(_CREATE, values | {"definition": sealed}).mappings().one_or_none()
        if row is None:
            if connection.execute(_HAS_NAME, {"tenant_id": tenant_id, "name": name}).scalar_one():
                raise Conflict(f"there is a tool named {name}: replace its definition, or delete it first")
            raise Conflict(f"there are {MAX_TOOLS} tools, which is the most: delete one first")
        record(connection, tenant_id, actor, "tool.created", tool_id, {"name": name}, after=_told(definition))
    return _tool(db.seal, row)


def list_tools(db: Database, tenant_id: str) -> list[StoredTool]:
    """Return the tenant's tools, by name. Raises CannotOpen if an encryption key is missing."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_LIST, {"tenant_id": tenant_id}).mappings().all()
    return [_tool(db.seal, row) for row in rows]


def named(db: Database, tenant_id: str, names: Collection[str]) -> dict[str, StoredTool]:
    """Return those of the tenant's tools that have these names, by name. Raises CannotOpen."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_NAMED, {"tenant_id": tenant_id, "names": list(names)}).mappings().all()
    return {row["name"]: _tool(db.seal, row) for row in rows}


def called(db: Database, tenant_id: str, name: str) -> Definition | None:
    """Return what answers a call of a function: the tool with this name, or the server of it. Raises CannotOpen."""
    server = server_of(name)
    found = named(db, tenant_id, [one for one in (name, server) if one])
    if server in found and isinstance(found[server].definition, McpServer):
        return found[server].definition
    return found[name].definition if name in found else None


def get(db: Database, tenant_id: str, tool_id: str) -> StoredTool:
    """Return a tool. Raises NotFound, CannotOpen."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_GET, {"tenant_id": tenant_id, "id": tool_id}).mappings().one_or_none()
    return _tool(db.seal, _found(row, tool_id))


def replace(db: Database, tenant_id: str, tool_id: str, definition: Definition, *, actor: str) -> StoredTool:
    """Replace the definition of a tool. Raises NotFound."""
    sealed = _sealed(db.seal, tenant_id, tool_id, definition)
    values = {"tenant_id": tenant_id, "id": tool_id, "definition": sealed}
    with db.begin(tenant_id=tenant_id) as connection:
        row = _found(connection.execute(_REPLACE, values).mappings().one_or_none(), tool_id)
        record(connection, tenant_id, actor, "tool.updated", tool_id, {"name": row["name"]}, after=_told(definition))
    return _tool(db.seal, row)


def delete(db: Database, tenant_id: str, tool_id: str, *, actor: str) -> None:
    """Delete a tool. Jobs that name it are told that there is none. Raises NotFound."""
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_DELETE, {"tenant_id": tenant_id, "id": tool_id}).mappings().one_or_none()
        record(connection, tenant_id, actor, "tool.deleted", tool_id, {"name": _found(row, tool_id)["name"]})


def _context(tenant_id: str, tool_id: str) -> SealContext:
    return SealContext(tenant_id, "tools", "definition", tool_id)


def _sealed(seal: Seal, tenant_id: str, tool_id: str, definition: Definition) -> str:
    return dump_json(seal.seal(definition.model_dump(mode="json"), _context(tenant_id, tool_id)))


def _told(definition: Definition) -> dict[str, object]:
    """Return what the audit log's hash covers: no secret, whose hash could be found by trying."""
    return definition.model_dump(mode="json", exclude={"url", "headers"})


def _found(row: RowMapping | None, tool_id: str) -> RowMapping:
    if row is None:
        raise NotFound(f"no tool {tool_id}")
    return row


def _tool(seal: Seal, row: RowMapping) -> StoredTool:
    opened = seal.open(row["definition"], _context(row["tenant_id"], row["id"]))
    try:
        definition = read_definition(opened)
    except ValidationError:
        raise InvalidRequest(f"the tool {row['name']} was stored by another release: replace its definition") from None
    fields = {name: row[name] for name in ("id", "tenant_id", "name", "created_at", "updated_at")}
    return StoredTool(**fields, definition=definition)

"""Prompt templates of a tenant, as numbered immutable versions. They are not filled in here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from store.audit.audit import record
from store.db.database import Database, dump_json
from store.encryption.vault import EncryptionContext, Vault
from store.errors import Conflict, NotFound
from store.ids import new_id


@dataclass(frozen=True, slots=True)
class PromptVersion:
    """One version of a template. ``template`` has the form that ``producer_api`` parsed."""

    id: str
    name: str
    version: int
    template: dict[str, Any]
    created_at: datetime


MAX_PROMPTS = 1000
MAX_VERSIONS = 10_000
MAX_BYTES = 256 << 20
"""Maximum stored size of all prompt versions of a tenant."""

# Number of prompts and of versions, and their size.
_STORED = text("""
SELECT count(DISTINCT prompts.id), count(*), coalesce(sum(pg_column_size(stored.template)), 0)
FROM prompts JOIN prompt_versions AS stored ON stored.prompt_id = prompts.id WHERE prompts.tenant_id = :tenant_id
""")


# Adds a prompt.
_CREATE = text("INSERT INTO prompts (id, tenant_id, name) VALUES (:id, :tenant_id, :name)")

# Adds a version.
_ADD = text("""
INSERT INTO prompt_versions (prompt_id, version, template)
VALUES (CAST(:id AS text), :version, CAST(:template AS jsonb))
RETURNING prompt_id AS id, CAST(:name AS text) AS name, version, template, created_at
""")

# Locks a prompt, so that concurrent versions get different numbers.
_LOCK = text("SELECT name FROM prompts WHERE tenant_id = :tenant_id AND id = :id FOR UPDATE")

# The next version number.
_NEXT = text("SELECT max(version) + 1 FROM prompt_versions WHERE prompt_id = :id")

_SELECT = """
SELECT prompts.id, prompts.name, stored.version, stored.template, stored.created_at
FROM prompts JOIN prompt_versions AS stored ON stored.prompt_id = prompts.id
WHERE prompts.tenant_id = :tenant_id AND """

# A version of a prompt; the newest one if no version is given.
_ONE = text(
    _SELECT
    + """prompts.id = :id AND (CAST(:version AS int) IS NULL OR stored.version = :version)
ORDER BY stored.version DESC LIMIT 1"""
)

# All versions of a prompt.
_VERSIONS = text(_SELECT + "prompts.id = :id ORDER BY stored.version")

# A page of prompts with their newest versions.
_NEWEST = text(
    _SELECT
    + """(CAST(:after AS text) IS NULL OR prompts.id < :after) AND stored.version = (
    SELECT max(version) FROM prompt_versions WHERE prompt_id = prompts.id)
ORDER BY prompts.id DESC LIMIT :limit"""
)


def _check_limits(connection: Connection, tenant_id: str, *, is_new: bool) -> None:
    """Raise Conflict if the tenant has reached a maximum. Concurrent requests may exceed it."""
    prompts, versions, num_bytes = connection.execute(_STORED, {"tenant_id": tenant_id}).one()
    if is_new and prompts >= MAX_PROMPTS:
        raise Conflict(f"there are {MAX_PROMPTS} prompts, which is the most: give one of them a new version")
    if versions >= MAX_VERSIONS or num_bytes >= MAX_BYTES:
        raise Conflict(
            f"the versions of all prompts are {versions} with {num_bytes} bytes, and {MAX_VERSIONS} with {MAX_BYTES} "
            "are the most: let requests bring what differs, as variables"
        )


def create(db: Database, tenant_id: str, *, name: str, template: dict[str, Any], actor: str) -> PromptVersion:
    """Store a new prompt with version 1. Raises Conflict if a maximum is reached."""
    prompt_id = new_id("pmpt")
    sealed = db.vault.seal(template, _context(tenant_id, prompt_id, 1))
    values = {"id": prompt_id, "tenant_id": tenant_id, "name": name, "template": dump_json(sealed)}
    with db.begin(tenant_id=tenant_id) as connection:
        _check_limits(connection, tenant_id, is_new=True)
        connection.execute(_CREATE, values)
        # A separate statement: row-level security checks the prompt of a version, so it must exist already.
        row = connection.execute(_ADD, values | {"version": 1}).mappings().one()
        made = _version(row, db.vault, tenant_id)
        record(connection, tenant_id, actor, "prompt.created", made.id, {"version": made.version}, after=template)
    return made


def add_version(db: Database, tenant_id: str, prompt_id: str, *, template: dict[str, Any], actor: str) -> PromptVersion:
    """Store the next version of a prompt.

    Raises NotFound if this tenant has no such prompt, Conflict if a maximum is reached.
    """
    values = {"id": prompt_id, "tenant_id": tenant_id}
    with db.begin(tenant_id=tenant_id) as connection:
        # A separate statement, so that the next one sees versions that were added while this one waited.
        name = connection.execute(_LOCK, values).scalar_one_or_none()
        if name is None:
            raise _not_found(prompt_id)
        _check_limits(connection, tenant_id, is_new=False)
        version = connection.execute(_NEXT, {"id": prompt_id}).scalar_one()
        sealed = db.vault.seal(template, _context(tenant_id, prompt_id, version))
        values |= {"name": name, "version": version, "template": dump_json(sealed)}
        row = connection.execute(_ADD, values).mappings().one()
        detail = {"version": row["version"]}
        record(connection, tenant_id, actor, "prompt.version_added", prompt_id, detail, after=template)
    return _version(row, db.vault, tenant_id)


def _version(row: RowMapping, vault: Vault, tenant_id: str) -> PromptVersion:
    template = vault.open(row["template"], _context(tenant_id, row["id"], row["version"]))
    return PromptVersion(**{**row, "template": template})


def _context(tenant_id: str, prompt_id: str, version: int) -> EncryptionContext:
    return EncryptionContext(tenant_id, "prompt_versions", "template", f"{prompt_id}/{version}")


def get(db: Database, tenant_id: str, prompt_id: str, version: int | None = None) -> PromptVersion:
    """Return a version of a prompt, by default the newest. Raises NotFound if this tenant has no such version."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        values = {"tenant_id": tenant_id, "id": prompt_id, "version": version}
        row = connection.execute(_ONE, values).mappings().one_or_none()
    if row is None:
        raise _not_found(prompt_id, version)
    return _version(row, db.vault, tenant_id)


def list_versions(db: Database, tenant_id: str, prompt_id: str) -> Sequence[PromptVersion]:
    """Return all versions of a prompt, oldest first. Raises NotFound if this tenant has no such prompt."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_VERSIONS, {"tenant_id": tenant_id, "id": prompt_id}).mappings().all()
    if not rows:
        raise _not_found(prompt_id)
    return [_version(row, db.vault, tenant_id) for row in rows]


def list_prompts(db: Database, tenant_id: str, *, limit: int, after: str | None = None) -> Sequence[PromptVersion]:
    """Return the newest version of at most ``limit`` prompts, newest prompt first, after the id ``after``."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_NEWEST, {"tenant_id": tenant_id, "limit": limit, "after": after}).mappings().all()
    return [_version(row, db.vault, tenant_id) for row in rows]


def _not_found(prompt_id: str, version: int | None = None) -> NotFound:
    which = "" if version is None else f" with a version {version}"
    return NotFound(f"no prompt {prompt_id[:80]}{which}", param="prompt")

"""Prompt templates and pipelines of a tenant, as numbered immutable versions with movable aliases.

They are not filled in here. A prompt or pipeline is known by its id, and by its name if it has one. Where a version is
asked for it is a number or an alias; without one it is that of the alias ``default``, else the newest. ``latest`` is
the newest, unless there is an alias of that name.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, InvalidRequest, NotFound
from headrace.store.ids import new_id
from headrace.store.json_text import dump_json
from headrace.store.registry.pipeline_aliases import refuse_rollout
from headrace.store.seal import Seal, SealContext


class Kind(StrEnum):
    """What the versions are: both kinds share names, limits, encryption and retention."""

    PROMPT = "prompt"
    PIPELINE = "pipeline"


_ID_PREFIX = {Kind.PROMPT: "pmpt", Kind.PIPELINE: "pipe"}


@dataclass(frozen=True, slots=True)
class Canary:
    """A version that gets a part of the jobs of an alias. ``percent``: of the keys, above 0 and below 100."""

    alias: str
    version: int
    percent: int


@dataclass(frozen=True, slots=True)
class PromptVersion:
    """One version of a template or pipeline. ``template`` has the form that ``producer_api`` parsed."""

    id: str
    name: str
    version: int
    template: dict[str, Any]
    created_at: datetime

    aliases: Sequence[str] = ()
    """Those that name this version."""

    @property
    def reference(self) -> str:
        """``name@2``, or the id if it has no name."""
        return f"{self.name or self.id}@{self.version}"


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""Of a prompt's name: as of a model's, without a slash. It does not begin as an id does."""

ALIAS_PATTERN = r"^[A-Za-z][A-Za-z0-9._-]{0,63}$"

DEFAULT = "default"
LATEST: Final = "latest"

MAX_ALIASES = 100
"""Of one prompt."""

MAX_PROMPTS = 1000
MAX_VERSIONS = 10_000
MAX_BYTES = 256 << 20
"""Maximum stored size of all prompt versions of a tenant."""

# Number of prompts and of versions, and their size.
_STORED = text("""
SELECT count(DISTINCT prompts.id), count(*), coalesce(sum(pg_column_size(stored.template)), 0)
FROM prompts JOIN prompt_versions AS stored ON stored.prompt_id = prompts.id WHERE prompts.tenant_id = :tenant_id
""")


# Adds a prompt, unless its name is taken.
_CREATE = text("""
INSERT INTO prompts (id, tenant_id, name, kind) VALUES (:id, :tenant_id, :name, :kind)
ON CONFLICT (tenant_id, name) WHERE name <> '' DO NOTHING
""")

# Adds a version.
_ADD = text("""
INSERT INTO prompt_versions (prompt_id, version, template)
VALUES (CAST(:id AS text), :version, CAST(:template AS jsonb))
RETURNING prompt_id AS id, CAST(:name AS text) AS name, version, template, created_at
""")

_IS_MEANT = """prompts.tenant_id = :tenant_id AND prompts.kind = :kind
    AND (prompts.id = :key OR prompts.name = :key AND prompts.name <> '')"""

# Locks a prompt, so that concurrent versions get different numbers.
_LOCK = text(f"SELECT id, name FROM prompts WHERE {_IS_MEANT} FOR UPDATE")

# The next version number.
_NEXT = text("SELECT max(version) + 1 FROM prompt_versions WHERE prompt_id = :id")

_SELECT = """
SELECT prompts.id, prompts.name, stored.version, stored.template, stored.created_at, ARRAY(
    SELECT alias FROM prompt_aliases AS named
    WHERE named.prompt_id = prompts.id AND named.version = stored.version ORDER BY alias) AS aliases
FROM prompts JOIN prompt_versions AS stored ON stored.prompt_id = prompts.id
WHERE """

# A version of a prompt, by its number or alias. If none is asked for, the newest one stands in for the default alias.
_ONE = text(
    _SELECT
    + f"""{_IS_MEANT} AND stored.version = COALESCE(
    CAST(:number AS int),
    (SELECT version FROM prompt_aliases WHERE prompt_id = prompts.id AND alias = :alias),
    CASE WHEN CAST(:is_any AS boolean)
        THEN (SELECT max(version) FROM prompt_versions WHERE prompt_id = prompts.id) END)"""
)

# All versions of a prompt.
_VERSIONS = text(_SELECT + f"{_IS_MEANT} ORDER BY stored.version")

# A page of prompts with their newest versions.
_NEWEST = text(
    _SELECT
    + """prompts.tenant_id = :tenant_id AND prompts.kind = :kind
    AND (CAST(:after AS text) IS NULL OR prompts.id < :after)
    AND stored.version = (SELECT max(version) FROM prompt_versions WHERE prompt_id = prompts.id)
ORDER BY prompts.id DESC LIMIT :limit"""
)

_DELETE = text("DELETE FROM prompts WHERE id = :id AND tenant_id = :tenant_id")

_POINT = text("""
INSERT INTO prompt_aliases (prompt_id, alias, version, canary_version, canary_percent)
VALUES (:id, :alias, :version, :canary_version, :canary_percent)
ON CONFLICT (prompt_id, alias) DO UPDATE SET
    version = excluded.version,
    canary_version = excluded.canary_version,
    canary_percent = excluded.canary_percent
""")

_CANARIES = text(f"""
SELECT prompts.id, named.alias, named.canary_version AS version, named.canary_percent AS percent
FROM prompts JOIN prompt_aliases AS named ON named.prompt_id = prompts.id
WHERE {_IS_MEANT} AND named.canary_version IS NOT NULL ORDER BY named.alias
""")

_NUM_ALIASES = text("SELECT count(*) FROM prompt_aliases WHERE prompt_id = :id AND alias <> :alias")

_UNPOINT = text("DELETE FROM prompt_aliases WHERE prompt_id = :id AND alias = :alias")


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


def create(
    db: Database, tenant_id: str, *, name: str, template: dict[str, Any], actor: str, kind: Kind = Kind.PROMPT
) -> PromptVersion:
    """Store a new prompt with version 1. Raises Conflict if a maximum is reached, or the name is taken."""
    prompt_id = new_id(_ID_PREFIX[kind])
    sealed = db.seal.seal(template, _context(tenant_id, prompt_id, 1))
    values = {"id": prompt_id, "tenant_id": tenant_id, "name": name, "template": dump_json(sealed), "kind": kind}
    with db.begin(tenant_id=tenant_id) as connection:
        _check_limits(connection, tenant_id, is_new=True)
        if not connection.execute(_CREATE, values).rowcount:
            raise Conflict(
                f"there is a prompt or a pipeline {name} already: add a version to it, or choose another name",
                param="name",
            )
        # A separate statement: row-level security checks the prompt of a version, so it must exist already.
        row = connection.execute(_ADD, values | {"version": 1}).mappings().one()
        made = _version(row, db.seal, tenant_id)
        record(connection, tenant_id, actor, f"{kind}.created", made.id, {"version": made.version}, after=template)
    return made


def add_version(
    db: Database, tenant_id: str, key: str, *, template: dict[str, Any], actor: str, kind: Kind = Kind.PROMPT
) -> PromptVersion:
    """Store the next version of the prompt with this id or name.

    Raises NotFound if this tenant has no such prompt, Conflict if a maximum is reached.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        # A separate statement, so that the next one sees versions that were added while this one waited.
        prompt_id, name = _locked(connection, tenant_id, key, kind)
        _check_limits(connection, tenant_id, is_new=False)
        version = connection.execute(_NEXT, {"id": prompt_id}).scalar_one()
        sealed = db.seal.seal(template, _context(tenant_id, prompt_id, version))
        values = {"id": prompt_id, "version": version, "name": name, "template": dump_json(sealed)}
        row = connection.execute(_ADD, values).mappings().one()
        detail = {"version": row["version"]}
        record(connection, tenant_id, actor, f"{kind}.version_added", prompt_id, detail, after=template)
    return _version(row, db.seal, tenant_id)


def delete(db: Database, tenant_id: str, key: str, *, actor: str, kind: Kind = Kind.PROMPT) -> str:
    """Delete a prompt with its versions and aliases; return its id. Raises NotFound, Conflict while it has a rollout.

    Jobs that were made from it keep what they were given.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        prompt_id, _ = _locked(connection, tenant_id, key, kind)
        refuse_rollout(connection, prompt_id, None)
        connection.execute(_DELETE, {"id": prompt_id, "tenant_id": tenant_id})
        record(connection, tenant_id, actor, f"{kind}.deleted", prompt_id, {})
    return prompt_id


def set_alias(
    db: Database,
    tenant_id: str,
    key: str,
    alias: str,
    version: int,
    *,
    actor: str,
    kind: Kind = Kind.PROMPT,
    canary: Canary | None = None,
) -> PromptVersion:
    """Let an alias name a version, and return it. ``canary``: what gets a part of its jobs; None ends one.

    Raises NotFound, and Conflict if the prompt has too many aliases.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        prompt_id, _ = _locked(connection, tenant_id, key, kind)
        refuse_rollout(connection, prompt_id, alias)
        found = _find(connection, db.seal, tenant_id, key, version, kind)
        if connection.execute(_NUM_ALIASES, {"id": prompt_id, "alias": alias}).scalar_one() >= MAX_ALIASES:
            raise Conflict(f"the {kind} has {MAX_ALIASES} aliases, which is the most: remove one")
        values: dict[str, Any] = {"canary_version": None, "canary_percent": None}
        detail: dict[str, Any] = {"alias": alias, "version": version}
        if canary is not None:
            tried = _find(connection, db.seal, tenant_id, key, canary.version, kind)
            values = {"canary_version": tried.version, "canary_percent": canary.percent}
            detail |= values
        connection.execute(_POINT, {"id": prompt_id, "alias": alias, "version": found.version} | values)
        record(connection, tenant_id, actor, f"{kind}.alias_set", prompt_id, detail)
        return _find(connection, db.seal, tenant_id, prompt_id, version, kind)


def remove_alias(db: Database, tenant_id: str, key: str, alias: str, *, actor: str, kind: Kind = Kind.PROMPT) -> None:
    """Remove an alias. Raises NotFound."""
    with db.begin(tenant_id=tenant_id) as connection:
        prompt_id, _ = _locked(connection, tenant_id, key, kind)
        refuse_rollout(connection, prompt_id, alias)
        if not connection.execute(_UNPOINT, {"id": prompt_id, "alias": alias}).rowcount:
            raise _not_found(key, alias, kind)
        record(connection, tenant_id, actor, f"{kind}.alias_removed", prompt_id, {"alias": alias})


def _locked(connection: Connection, tenant_id: str, key: str, kind: Kind) -> tuple[str, str]:
    """Lock a prompt; return its id and name. Raises NotFound."""
    row = connection.execute(_LOCK, {"key": key, "tenant_id": tenant_id, "kind": kind}).one_or_none()
    if row is None:
        raise _not_found(key, None, kind)
    return row.id, row.name


def _version(row: RowMapping, seal: Seal, tenant_id: str) -> PromptVersion:
    template = seal.open(row["template"], _context(tenant_id, row["id"], row["version"]))
    return PromptVersion(**{**row, "template": template, "aliases": tuple(row.get("aliases", ()))})


def _context(tenant_id: str, prompt_id: str, version: int) -> SealContext:
    return SealContext(tenant_id, "prompt_versions", "template", f"{prompt_id}/{version}")


def get(
    db: Database, tenant_id: str, key: str, version: int | str | None = None, kind: Kind = Kind.PROMPT
) -> PromptVersion:
    """Return a version of the prompt with this id or name, by its number or alias. ``key`` may be ``name@version``.

    Raises NotFound if this tenant has no such version, InvalidRequest if two versions are given.
    """
    name, _, at = key.partition("@")
    if at and version is not None:
        raise InvalidRequest(f"the {kind} names a version, {at[:64]}: leave out `version`", param=f"{kind}.version")
    with db.autocommit(tenant_id=tenant_id) as connection:
        return _find(connection, db.seal, tenant_id, name, at or version, kind)


def choose(db: Database, tenant_id: str, key: str, kind: Kind, draw: Callable[[str], float]) -> PromptVersion:
    """Return the version that a job gets: as ``get``, or the canary of its alias.

    ``draw`` returns a number from 0 to below 100 for a text; below the canary's percentage the job is the canary's.
    """
    name, _, at = key.partition("@")
    values = {"tenant_id": tenant_id, "key": name, "kind": kind}
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_CANARIES, values).all()
        row = next((row for row in rows if row.alias == (at or DEFAULT)), None)
        is_tried = row is not None and draw(f"{row.id} {row.alias} {row.version}") < row.percent
        version = row.version if row is not None and is_tried else at
        return _find(connection, db.seal, tenant_id, name, version or None, kind)


def canaries(db: Database, tenant_id: str, key: str, kind: Kind) -> Sequence[Canary]:
    """Return the canaries of a prompt's or a pipeline's aliases."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_CANARIES, {"tenant_id": tenant_id, "key": key, "kind": kind})
        return [Canary(row.alias, row.version, row.percent) for row in rows]


_NUMBER = re.compile(r"[0-9]{1,9}")


def _find(
    connection: Connection, seal: Seal, tenant_id: str, key: str, version: int | str | None, kind: Kind
) -> PromptVersion:
    wanted = None if version is None else str(version)
    number = int(wanted) if wanted is not None and _NUMBER.fullmatch(wanted) else None
    values = {"tenant_id": tenant_id, "key": key, "number": number, "alias": wanted or DEFAULT}
    values |= {"is_any": not wanted or wanted == LATEST, "kind": kind}
    row = connection.execute(_ONE, values).mappings().one_or_none()
    if row is None:
        raise _not_found(key, wanted, kind)
    return _version(row, seal, tenant_id)


def list_versions(db: Database, tenant_id: str, key: str, kind: Kind = Kind.PROMPT) -> Sequence[PromptVersion]:
    """Return all versions of a prompt, oldest first. Raises NotFound if this tenant has no such prompt."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_VERSIONS, {"tenant_id": tenant_id, "key": key, "kind": kind}).mappings().all()
    if not rows:
        raise _not_found(key, None, kind)
    return [_version(row, db.seal, tenant_id) for row in rows]


def list_prompts(
    db: Database, tenant_id: str, *, limit: int, after: str | None = None, kind: Kind = Kind.PROMPT
) -> Sequence[PromptVersion]:
    """Return the newest version of at most ``limit`` prompts, newest prompt first, after the id ``after``."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        values = {"tenant_id": tenant_id, "limit": limit, "after": after, "kind": kind}
        rows = connection.execute(_NEWEST, values).mappings().all()
    return [_version(row, db.seal, tenant_id) for row in rows]


def _not_found(key: str, version: str | None, kind: Kind) -> NotFound:
    which = "" if version is None else f" with a version or alias {version[:64]}"
    return NotFound(f"no {kind} {key[:80]}{which}", param=str(kind))

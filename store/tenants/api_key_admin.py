"""Administration of API keys: list, create, update, rotate, revoke.

Keys are changed with another key, the *grantor*, or by the operator (grantor None). Rules for grantors:

* A key grants no right that it lacks: no model, no scope and no later end. A new key also gets the operator's limits of
  its grantor. The grantor's rights are read in the transaction, so a key that was just revoked creates no keys, even
  while API processes still have it in their caches.
* The tenant keeps an admin key: see ``ADMIN_LEFT_FOR``.

Every change takes a lock of the tenant, so that two admins cannot revoke each other at the same time.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthenticated
from headrace.store.tenants.api_keys import Rights, check_rights, includes, insert_key
from headrace.store.tenants.tenant_limits import SetBy, copy_limits

ADMIN_LEFT_FOR = timedelta(days=7)
"""After a change of an admin key another key must have the same rights for this long, or as long as the changed one."""

MAX_KEYS = 1000
"""Maximum number of a tenant's keys in force; the operator may create more."""

DEFAULT_OVERLAP_S = 86_400
"""Default time for which a rotated key still works."""


class Unchanged(Enum):
    """Marks a field of a change that keeps its value."""

    UNCHANGED = auto()


Until = datetime | float | None
"""End of a key: a time, seconds from now by the database's clock, or None for never."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key. ``replaced_by``: the key that replaced it in a rotation."""

    id: str
    name: str
    rights: Rights
    replaced_by: str | None
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None

    def is_in_force(self, now: datetime) -> bool:
        """True if the key is valid at that time."""
        expires_at = self.rights.expires_at
        return self.revoked_at is None and (expires_at is None or expires_at > now)

    def audit_fields(self) -> dict[str, Any]:
        """Return the fields that the audit log hashes before and after a change."""
        revoked = None if self.revoked_at is None else self.revoked_at.isoformat()
        return {"name": self.name, **self.rights.audit_fields(), "replaced_by": self.replaced_by, "revoked_at": revoked}


@dataclass(frozen=True, slots=True)
class NewKey:
    """The request for a key."""

    name: str
    scopes: frozenset[str]
    models: frozenset[str] | None = None
    until: Until = None


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A change of a key."""

    name: str | Unchanged = Unchanged.UNCHANGED
    scopes: frozenset[str] | Unchanged = Unchanged.UNCHANGED
    models: frozenset[str] | Unchanged | None = Unchanged.UNCHANGED
    until: Until | Unchanged = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key that was just created. ``plaintext`` is not stored."""

    key: ApiKey
    plaintext: str


@dataclass(frozen=True, slots=True)
class _Grantor:
    """The actor of a change, its time and its rights. ``rights`` None: the operator, who may grant everything."""

    tenant_id: str
    now: datetime
    actor: str
    rights: Rights | None


_COLUMNS = "id, name, scopes, models, replaced_by, created_at, expires_at, last_used_at, revoked_at"

# A page of keys, newest first.
_LIST = text(f"""
SELECT {_COLUMNS} FROM api_keys
WHERE tenant_id = :tenant_id AND (CAST(:after AS text) IS NULL OR id < :after) ORDER BY id DESC LIMIT :limit
""")

# One key.
_GET = text(f"SELECT {_COLUMNS} FROM api_keys WHERE tenant_id = :tenant_id AND id = :id")

# Changes name, rights and end of a key.
_UPDATE = text("""
UPDATE api_keys SET name = :name, scopes = CAST(:scopes AS varchar[]), models = CAST(:models AS varchar[]),
    expires_at = :expires_at
WHERE tenant_id = :tenant_id AND id = :id
""")

# Ends a rotated key, at once or after the overlap.
_REPLACE = text("""
UPDATE api_keys SET replaced_by = :replaced_by,
    revoked_at = CASE WHEN :overlap_s = 0 THEN now() ELSE revoked_at END,
    expires_at = CASE WHEN :overlap_s = 0 THEN expires_at
        ELSE LEAST(expires_at, now() + make_interval(secs => :overlap_s)) END
WHERE tenant_id = :tenant_id AND id = :id
""")

# Ends a key at once.
_REVOKE = text("UPDATE api_keys SET revoked_at = now() WHERE tenant_id = :tenant_id AND id = :id")

# Locks the tenant's keys for the transaction. The database role of the API may not lock the tenant's row.
_LOCK = text("SELECT now() FROM pg_advisory_xact_lock(hashtextextended('headrace.keys.' || :tenant_id, 0))")

# Number of the tenant's keys in force.
_IN_FORCE = text("""
SELECT count(*) FROM api_keys
WHERE tenant_id = :tenant_id AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
""")


def covers(holder: Rights, wanted: Rights) -> bool:
    """True if the rights of ``holder`` include all that is ``wanted``."""
    return _lacking(holder, wanted) is None


def _lacking(holder: Rights, wanted: Rights) -> Forbidden | None:
    """Return the error for a right that the holder lacks, or None."""
    if missing := sorted(scope for scope in wanted.scopes if not includes(holder.scopes, scope)):
        return Forbidden(f"a key gives no scope that it lacks: this one lacks {', '.join(missing)}", param="scopes")
    if holder.models is not None and (wanted.models is None or wanted.models - holder.models):
        may = ", ".join(sorted(holder.models))
        message = f"a key gives no model that it may not use: this one may use {may}; say so in `models`"
        return Forbidden(message, code="model_not_allowed", param="models")
    if holder.expires_at is not None and (wanted.expires_at is None or wanted.expires_at > holder.expires_at):
        end = f"{holder.expires_at:%Y-%m-%d %H:%M:%S} UTC"
        message = f"a key gives no right for longer than it has it: this one ends at {end}; say so in `expires_at`"
        return Forbidden(message, code="expiry_not_allowed", param="expires_at")
    return None


def list_keys(db: Database, tenant_id: str, *, limit: int | None, after: str | None = None) -> list[ApiKey]:
    """Return at most ``limit`` keys (None: all), newest first, after the id ``after``, including ended keys."""
    values = {"tenant_id": tenant_id, "limit": limit, "after": after}
    with db.autocommit(tenant_id=tenant_id) as connection:
        return [_key(row) for row in connection.execute(_LIST, values).mappings()]


def get_key(db: Database, tenant_id: str, key_id: str) -> ApiKey:
    """Return the key. Raises NotFound if this tenant has no key with that id."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return _get(connection, tenant_id, key_id)


def create(db: Database, tenant_id: str, new: NewKey, *, actor: str, grantor: str | None) -> IssuedKey:
    """Create a key. Raises InvalidRequest, Forbidden if the grantor lacks a right, Unauthenticated if it has ended."""
    with db.begin(tenant_id=tenant_id) as connection:
        by = _begin(connection, tenant_id, actor, grantor)
        issued = _issue(connection, by, new.name, Rights(new.scopes, new.models, _end(new.until, by.now)))
        if grantor is not None:
            copy_limits(connection, tenant_id, grantor, issued.key.id, [SetBy.OPERATOR])
        return issued


def update(db: Database, tenant_id: str, key_id: str, change: KeyChange, *, actor: str, grantor: str | None) -> ApiKey:
    """Change a key in force and return it. API processes see the change when their caches are refreshed.

    Raises the errors of ``create``, NotFound, and Conflict if the tenant would have no admin key.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        by = _begin(connection, tenant_id, actor, grantor)
        before = _get_in_force(connection, by, key_id)
        rights = Rights(
            before.rights.scopes if isinstance(change.scopes, Unchanged) else change.scopes,
            before.rights.models if isinstance(change.models, Unchanged) else change.models,
            before.rights.expires_at if isinstance(change.until, Unchanged) else _end(change.until, by.now),
        )
        name = before.name if isinstance(change.name, Unchanged) else change.name
        if rights != before.rights:
            check_rights(rights)
            _check_grants(by, rights)
        values = {"tenant_id": tenant_id, "id": key_id, **rights.audit_fields(), "expires_at": rights.expires_at}
        connection.execute(_UPDATE, values | {"name": name})
        return _changed(connection, by, "api_key.updated", before, {"name": name, **rights.audit_fields()})


def rotate(
    db: Database,
    tenant_id: str,
    key_id: str,
    *,
    overlap_s: int = DEFAULT_OVERLAP_S,
    until: Until | Unchanged = Unchanged.UNCHANGED,
    actor: str,
    grantor: str | None,
) -> tuple[ApiKey, IssuedKey]:
    """Create a key with the same name, rights and limits. The old one ends after ``overlap_s``. Returns both.

    Raises the errors of ``update``, and Conflict if the key was rotated before.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        by = _begin(connection, tenant_id, actor, grantor)
        before = _get_in_force(connection, by, key_id)
        if before.replaced_by is not None:
            raise Conflict(f"{key_id} was rotated before: its successor is {before.replaced_by}", code="key_rotated")
        rights = before.rights
        if not isinstance(until, Unchanged):
            rights = replace(rights, expires_at=_end(until, by.now))
        issued = _issue(connection, by, before.name, rights)
        copy_limits(connection, tenant_id, key_id, issued.key.id, SetBy)
        values = {"tenant_id": tenant_id, "id": key_id, "replaced_by": issued.key.id, "overlap_s": float(overlap_s)}
        connection.execute(_REPLACE, values)
        detail = {"replaced_by": issued.key.id, "overlap_s": overlap_s}
        return _changed(connection, by, "api_key.rotated", before, detail), issued


def revoke(db: Database, tenant_id: str, key_id: str, *, actor: str, grantor: str | None) -> ApiKey:
    """End a key at once. Raises NotFound if it is not in force, Conflict if the tenant would have no admin key."""
    with db.begin(tenant_id=tenant_id) as connection:
        by = _begin(connection, tenant_id, actor, grantor)
        before = _get_in_force(connection, by, key_id)
        connection.execute(_REVOKE, {"tenant_id": tenant_id, "id": key_id})
        return _changed(connection, by, "api_key.revoked", before, {})


def _begin(connection: Connection, tenant_id: str, actor: str, grantor: str | None) -> _Grantor:
    now = connection.execute(_LOCK, {"tenant_id": tenant_id}).scalar_one()
    if grantor is None:
        return _Grantor(tenant_id, now, actor, None)
    key = _get(connection, tenant_id, grantor)
    if not key.is_in_force(now):
        raise Unauthenticated("the API key is not valid: it was never issued, was revoked or has expired")
    return _Grantor(tenant_id, now, actor, key.rights)


def _end(until: Until, now: datetime) -> datetime | None:
    try:
        end = now + timedelta(seconds=until) if isinstance(until, int | float) else until
    except OverflowError:
        raise InvalidRequest("a key cannot last that long", param="expires_in_s") from None
    if end is not None and end <= now:
        raise InvalidRequest("the key would have ended already: name a later time, or revoke it", param="expires_at")
    return end


def _issue(connection: Connection, by: _Grantor, name: str, rights: Rights) -> IssuedKey:
    check_rights(rights)
    _check_grants(by, rights)
    if by.rights is not None:
        num_keys = connection.execute(_IN_FORCE, {"tenant_id": by.tenant_id}).scalar_one()
        if num_keys >= MAX_KEYS:
            raise Conflict(f"{MAX_KEYS} keys are in force, which is the most: revoke one that is not needed")
    key_id, plaintext = insert_key(connection, by.tenant_id, name, rights, by.actor)
    return IssuedKey(_get(connection, by.tenant_id, key_id), plaintext)


def _check_grants(by: _Grantor, wanted: Rights) -> None:
    lacking = None if by.rights is None else _lacking(by.rights, wanted)
    if lacking is not None:
        raise lacking


def _changed(connection: Connection, by: _Grantor, action: str, before: ApiKey, detail: dict[str, Any]) -> ApiKey:
    """Record a change and return the changed key. Raises Conflict if the tenant has no admin key any more."""
    after = _get(connection, by.tenant_id, before.id)
    if by.rights is not None and "admin" in before.rights.scopes:
        keys = connection.execute(_LIST, {"tenant_id": by.tenant_id, "limit": None, "after": None}).mappings()
        _check_admin_left(before.rights, map(_key, keys), by.now)
    fields = before.audit_fields(), after.audit_fields()
    record(connection, by.tenant_id, by.actor, action, before.id, detail, before=fields[0], after=fields[1])
    return after


def _check_admin_left(before: Rights, keys: Iterable[ApiKey], now: datetime) -> None:
    soon = now + ADMIN_LEFT_FOR
    needed = replace(before, expires_at=soon if before.expires_at is None else min(before.expires_at, soon))
    if not any(key.is_in_force(now) and covers(key.rights, needed) for key in keys):
        raise Conflict(
            f"no other admin key with these rights would be left for the next {ADMIN_LEFT_FOR.days} days: make one "
            "first; the operator of this server can end a key without one, by `headrace keys revoke`",
            code="last_admin_key",
        )


def _get(connection: Connection, tenant_id: str, key_id: str) -> ApiKey:
    row = connection.execute(_GET, {"tenant_id": tenant_id, "id": key_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no API key {key_id}")
    return _key(row)


def _get_in_force(connection: Connection, by: _Grantor, key_id: str) -> ApiKey:
    key = _get(connection, by.tenant_id, key_id)
    if not key.is_in_force(by.now):
        raise NotFound(f"no API key {key_id} in force")
    return key


def _key(row: RowMapping) -> ApiKey:
    models = None if row["models"] is None else frozenset(row["models"])
    rights = Rights(frozenset(row["scopes"]), models, row["expires_at"])
    names = ("id", "name", "replaced_by", "created_at", "last_used_at", "revoked_at")
    return ApiKey(rights=rights, **{name: row[name] for name in names})

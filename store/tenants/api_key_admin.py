"""Keys as their tenant's admins see and change them: look, make, narrow, rotate, revoke.

Whoever changes keys does so with a key, the *giver*, or is the operator (giver None). What holds for givers:

* A key gives no right that it does not have itself: no model, no scope, no later end, and no way round the limits that
  the operator has set it. Its rights are read in the transaction, so one that was revoked a moment ago makes no keys,
  however long API processes may remember it.
* The tenant keeps an admin: see ``ADMIN_LEFT_FOR``.

Every change holds a lock of the tenant's, so that two admins who revoke each other at once do it one after the other.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from store.audit.audit import record
from store.db.database import Database
from store.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthenticated
from store.tenants.api_keys import Rights, check_rights, insert_key
from store.tenants.tenant_limits import SetBy, copy_limits

ADMIN_LEFT_FOR = timedelta(days=7)
"""What a giver takes from an admin key must leave another one with the same rights for this long, or as long as that
one would have lasted."""

MAX_KEYS = 1000
"""Of a tenant, in force at once; the operator may make more."""

DEFAULT_OVERLAP_S = 86_400
"""How long a key still works after it was rotated, unless told otherwise."""


class Kept(Enum):
    """What is not to be changed."""

    KEPT = auto()


Until = datetime | float | None
"""When a key ends: a time, seconds from now by the database's clock, or never."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key. ``replaced_by`` is the one that took its place when it was rotated."""

    id: str
    name: str
    rights: Rights
    replaced_by: str | None
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None

    def is_in_force(self, now: datetime) -> bool:
        """True if it opens anything at that time."""
        expires_at = self.rights.expires_at
        return self.revoked_at is None and (expires_at is None or expires_at > now)

    def told(self) -> dict[str, Any]:
        """Return what the audit log compares."""
        revoked = None if self.revoked_at is None else self.revoked_at.isoformat()
        return {"name": self.name, **self.rights.told(), "replaced_by": self.replaced_by, "revoked_at": revoked}


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that is asked for."""

    name: str
    scopes: frozenset[str]
    models: frozenset[str] | None = None
    until: Until = None


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of a key."""

    name: str | Kept = Kept.KEPT
    scopes: frozenset[str] | Kept = Kept.KEPT
    models: frozenset[str] | Kept | None = Kept.KEPT
    until: Until | Kept = Kept.KEPT


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key that was made just now. ``plaintext`` is known only here."""

    key: ApiKey
    plaintext: str


@dataclass(frozen=True, slots=True)
class _Hand:
    """Who changes keys, and when. ``rights`` None: the operator, who may give everything."""

    tenant_id: str
    now: datetime
    actor: str
    rights: Rights | None


def covers(holder: Rights, wanted: Rights) -> bool:
    """True if the rights of ``holder`` include all that is ``wanted``."""
    return _lacking(holder, wanted) is None


def _lacking(holder: Rights, wanted: Rights) -> Forbidden | None:
    """Return what the holder lacks, as the error for whoever wants to give it."""
    if "admin" not in holder.scopes and (missing := sorted(wanted.scopes - holder.scopes)):
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


_COLUMNS = "id, name, scopes, models, replaced_by, created_at, expires_at, last_used_at, revoked_at"

_LIST = text(f"""
SELECT {_COLUMNS} FROM api_keys
WHERE tenant_id = :tenant_id AND (CAST(:after AS text) IS NULL OR id < :after) ORDER BY id DESC LIMIT :limit
""")


def list_keys(db: Database, tenant_id: str, *, limit: int | None, after: str | None = None) -> list[ApiKey]:
    """Return at most ``limit`` keys, newest first, beginning past the id ``after``; None: all of them.

    Those that have ended are among them.
    """
    values = {"tenant_id": tenant_id, "limit": limit, "after": after}
    with db.autocommit(tenant_id=tenant_id) as connection:
        return [_key(row) for row in connection.execute(_LIST, values).mappings()]


_GET = text(f"SELECT {_COLUMNS} FROM api_keys WHERE tenant_id = :tenant_id AND id = :id")


def get_key(db: Database, tenant_id: str, key_id: str) -> ApiKey:
    """Return the key; raise NotFound if this tenant has none by that id."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return _get(connection, tenant_id, key_id)


def create(db: Database, tenant_id: str, new: NewKey, *, actor: str, giver: str | None) -> IssuedKey:
    """Make a key. Raises InvalidRequest, Forbidden if the giver lacks a right, Unauthenticated if it has ended."""
    with db.begin(tenant_id=tenant_id) as connection:
        hand = _begin(connection, tenant_id, actor, giver)
        issued = _issue(connection, hand, new.name, Rights(new.scopes, new.models, _end(new.until, hand.now)))
        if giver is not None:
            copy_limits(connection, tenant_id, giver, issued.key.id, [SetBy.OPERATOR])
        return issued


_UPDATE = text("""
UPDATE api_keys SET name = :name, scopes = CAST(:scopes AS varchar[]), models = CAST(:models AS varchar[]),
    expires_at = :expires_at
WHERE tenant_id = :tenant_id AND id = :id
""")


def update(db: Database, tenant_id: str, key_id: str, change: Change, *, actor: str, giver: str | None) -> ApiKey:
    """Change a key in force and return it; API processes follow as they do when one is revoked.

    Raises as ``create`` does, NotFound, and Conflict if the tenant would be left without an admin.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        hand = _begin(connection, tenant_id, actor, giver)
        before = _get_in_force(connection, hand, key_id)
        rights = Rights(
            before.rights.scopes if isinstance(change.scopes, Kept) else change.scopes,
            before.rights.models if isinstance(change.models, Kept) else change.models,
            before.rights.expires_at if isinstance(change.until, Kept) else _end(change.until, hand.now),
        )
        name = before.name if isinstance(change.name, Kept) else change.name
        if rights != before.rights:
            check_rights(rights)
            _check_gives(hand, rights)
        values = {"tenant_id": tenant_id, "id": key_id, **rights.told(), "expires_at": rights.expires_at}
        connection.execute(_UPDATE, values | {"name": name})
        return _changed(connection, hand, "api_key.updated", before, {"name": name, **rights.told()})


_REPLACE = text("""
UPDATE api_keys SET replaced_by = :replaced_by,
    revoked_at = CASE WHEN :overlap_s = 0 THEN now() ELSE revoked_at END,
    expires_at = CASE WHEN :overlap_s = 0 THEN expires_at
        ELSE LEAST(expires_at, now() + make_interval(secs => :overlap_s)) END
WHERE tenant_id = :tenant_id AND id = :id
""")


def rotate(
    db: Database,
    tenant_id: str,
    key_id: str,
    *,
    overlap_s: int = DEFAULT_OVERLAP_S,
    until: Until | Kept = Kept.KEPT,
    actor: str,
    giver: str | None,
) -> tuple[ApiKey, IssuedKey]:
    """Make a key with the same name, rights and limits, and let the old one end after ``overlap_s``; return both.

    Raises as ``update`` does, and Conflict if the key was rotated before.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        hand = _begin(connection, tenant_id, actor, giver)
        before = _get_in_force(connection, hand, key_id)
        if before.replaced_by is not None:
            raise Conflict(f"{key_id} was rotated before: its successor is {before.replaced_by}", code="key_rotated")
        rights = before.rights
        if not isinstance(until, Kept):
            rights = replace(rights, expires_at=_end(until, hand.now))
        issued = _issue(connection, hand, before.name, rights)
        copy_limits(connection, tenant_id, key_id, issued.key.id, SetBy)
        values = {"tenant_id": tenant_id, "id": key_id, "replaced_by": issued.key.id, "overlap_s": float(overlap_s)}
        connection.execute(_REPLACE, values)
        detail = {"replaced_by": issued.key.id, "overlap_s": overlap_s}
        return _changed(connection, hand, "api_key.rotated", before, detail), issued


_REVOKE = text("UPDATE api_keys SET revoked_at = now() WHERE tenant_id = :tenant_id AND id = :id")


def revoke(db: Database, tenant_id: str, key_id: str, *, actor: str, giver: str | None) -> ApiKey:
    """End a key at once. Raises NotFound if none such is in force, Conflict if no admin would be left."""
    with db.begin(tenant_id=tenant_id) as connection:
        hand = _begin(connection, tenant_id, actor, giver)
        before = _get_in_force(connection, hand, key_id)
        connection.execute(_REVOKE, {"tenant_id": tenant_id, "id": key_id})
        return _changed(connection, hand, "api_key.revoked", before, {})


# Not the tenant's row: who serves a tenant may not change it.
_HOLD = text("SELECT now() FROM pg_advisory_xact_lock(hashtextextended('headrace.keys.' || :tenant_id, 0))")


def _begin(connection: Connection, tenant_id: str, actor: str, giver: str | None) -> _Hand:
    now = connection.execute(_HOLD, {"tenant_id": tenant_id}).scalar_one()
    if giver is None:
        return _Hand(tenant_id, now, actor, None)
    key = _get(connection, tenant_id, giver)
    if not key.is_in_force(now):
        raise Unauthenticated("the API key is not valid: it was never issued, was revoked or has expired")
    return _Hand(tenant_id, now, actor, key.rights)


def _end(until: Until, now: datetime) -> datetime | None:
    try:
        end = now + timedelta(seconds=until) if isinstance(until, int | float) else until
    except OverflowError:
        raise InvalidRequest("a key cannot last that long", param="expires_in_s") from None
    if end is not None and end <= now:
        raise InvalidRequest("the key would have ended already: name a later time, or revoke it", param="expires_at")
    return end


_IN_FORCE = text("""
SELECT count(*) FROM api_keys
WHERE tenant_id = :tenant_id AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
""")


def _issue(connection: Connection, hand: _Hand, name: str, rights: Rights) -> IssuedKey:
    check_rights(rights)
    _check_gives(hand, rights)
    if hand.rights is not None:
        num_keys = connection.execute(_IN_FORCE, {"tenant_id": hand.tenant_id}).scalar_one()
        if num_keys >= MAX_KEYS:
            raise Conflict(f"{MAX_KEYS} keys are in force, which is the most: revoke one that is not needed")
    key_id, plaintext = insert_key(connection, hand.tenant_id, name, rights, hand.actor)
    return IssuedKey(_get(connection, hand.tenant_id, key_id), plaintext)


def _check_gives(hand: _Hand, wanted: Rights) -> None:
    lacking = None if hand.rights is None else _lacking(hand.rights, wanted)
    if lacking is not None:
        raise lacking


def _changed(connection: Connection, hand: _Hand, action: str, before: ApiKey, detail: dict[str, Any]) -> ApiKey:
    """Record a change that was made and return the key as it is now; raise Conflict if it took the last admin."""
    after = _get(connection, hand.tenant_id, before.id)
    if hand.rights is not None and "admin" in before.rights.scopes:
        keys = connection.execute(_LIST, {"tenant_id": hand.tenant_id, "limit": None, "after": None}).mappings()
        _check_admin_left(before.rights, map(_key, keys), hand.now)
    told = before.told(), after.told()
    record(connection, hand.tenant_id, hand.actor, action, before.id, detail, before=told[0], after=told[1])
    return after


def _check_admin_left(before: Rights, keys: Iterable[ApiKey], now: datetime) -> None:
    soon = now + ADMIN_LEFT_FOR
    needed = replace(before, expires_at=soon if before.expires_at is None else min(before.expires_at, soon))
    if not any(key.is_in_force(now) and covers(key.rights, needed) for key in keys):
        raise Conflict(
            f"no other admin key with these rights would be left for the next {ADMIN_LEFT_FOR.days} days: make one "
            "first; whoever operates this server can end a key without one, by `headrace keys revoke`",
            code="last_admin_key",
        )


def _get(connection: Connection, tenant_id: str, key_id: str) -> ApiKey:
    row = connection.execute(_GET, {"tenant_id": tenant_id, "id": key_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no API key {key_id}")
    return _key(row)


def _get_in_force(connection: Connection, hand: _Hand, key_id: str) -> ApiKey:
    key = _get(connection, hand.tenant_id, key_id)
    if not key.is_in_force(hand.now):
        raise NotFound(f"no API key {key_id} in force")
    return key


def _key(row: RowMapping) -> ApiKey:
    models = None if row["models"] is None else frozenset(row["models"])
    rights = Rights(frozenset(row["scopes"]), models, row["expires_at"])
    names = ("id", "name", "replaced_by", "created_at", "last_used_at", "revoked_at")
    return ApiKey(rights=rights, **{name: row[name] for name in names})

"""Tenants and their API keys. A key is shown once, when it is created; the database stores its hash.

The secret is 32 random bytes, so SHA-256 is enough: a slow hash protects only secrets that can be guessed.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated
from headrace.store.ids import new_id
from headrace.store.seal import Seal
from headrace.store.tenants.signing_secrets import new_secret, secret_context

SCOPES: frozenset[str] = frozenset(
    {
        "admin",
        "audit:read",
        "jobs:read",
        "jobs:write",
        "models:admin",
        "models:read",
        "queues:admin",
        "registry:admin",
        "usage:read",
        "webhooks:admin",
    }
)

OPERATION_SCOPES: frozenset[str] = frozenset({"queues:admin", "registry:admin"})
"""Scopes over what belongs to no tenant: queues, hosts, model versions. ``admin`` does not include them."""

DEFAULT_TENANT = "default"
_LONGEST_TENANT = 100
_PREFIX = "hr"
_KEY_ID_PREFIX = "key"
# The hash to compare with if a key is unknown, so that the check takes the same time.
_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class Rights:
    """Scopes of a key, the names of its allowed models (None: all), and its end (None: never)."""

    scopes: frozenset[str]
    models: frozenset[str] | None = None
    expires_at: datetime | None = None

    def audit_fields(self) -> dict[str, Any]:
        """Return the rights for the audit log, as JSON."""
        return {
            "scopes": sorted(self.scopes),
            "models": None if self.models is None else sorted(self.models),
            "expires_at": None if self.expires_at is None else self.expires_at.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Principal:
    """The tenant and the key of a request, with the key's scopes and allowed models (None: all)."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]
    models: frozenset[str] | None = None

    def check_model(self, name: str) -> None:
        """Raise Forbidden if the key may not use a model, given as ``name`` or ``name@3``."""
        if self.models is not None and base_model(name) not in self.models:
            known = ", ".join(sorted(self.models)) or "no model"
            raise Forbidden(
                f"this API key may not use the model {name[:200]!r}: it may use {known}",
                code="model_not_allowed",
                param="model",
            )


# Adds a tenant, unless its name is taken.
_INSERT_TENANT = text("""
INSERT INTO tenants (id, name, webhook_secret) VALUES (:id, :name, :secret)
ON CONFLICT (name) DO NOTHING RETURNING id
""")

# Adds a key.
_INSERT_KEY = text("""
INSERT INTO api_keys (id, tenant_id, name, secret_hash, scopes, models, expires_at)
VALUES (:id, :tenant_id, :name, :hash, CAST(:scopes AS varchar[]), CAST(:models AS varchar[]), :expires_at)
""")

# The key, its tenant and its hash. The tenant is not known yet, so a function of the schema's owner reads it.
_FIND = text("SELECT * FROM headrace_find_key(:id)")

# Records the minute of the key's last use, without waiting for a locked row.
_RECORD_USE = text("""
UPDATE api_keys SET last_used_at = date_trunc('minute', now())
WHERE id = (SELECT id FROM api_keys WHERE id = :id FOR NO KEY UPDATE SKIP LOCKED)
""")

# The rights of a key, also of one that has ended.
_RIGHTS = text("""
SELECT key.tenant_id, key.scopes, key.models, tenants.disabled_at IS NOT NULL AS is_disabled
FROM api_keys AS key JOIN tenants ON tenants.id = key.tenant_id
WHERE key.id = :id AND key.tenant_id = :tenant_id
""")


def includes(scopes: frozenset[str], scope: str) -> bool:
    """True if a key with ``scopes`` has ``scope``: ``admin`` includes all scopes but those of the operation."""
    return scope in scopes or ("admin" in scopes and scope not in OPERATION_SCOPES)


def base_model(name: str) -> str:
    """Return the name in ``name``, ``name@3``, ``name@alias`` or ``name:adapter``."""
    return name.partition("@")[0].partition(":")[0]


def create_tenant(db: Database, name: str, *, actor: str = "system") -> str:
    """Add a tenant and return its id. Raises InvalidRequest if the name is taken or invalid."""
    with db.begin() as connection:
        return _create_tenant(connection, db.seal, name, actor)


def find_tenant(db: Database, name: str) -> str:
    """Return the id of a tenant. Raises NotFound if no tenant has this name."""
    with db.begin() as connection:
        found = connection.execute(text("SELECT id FROM tenants WHERE name = :name"), {"name": name})
        tenant_id = found.scalar_one_or_none()
    if tenant_id is None:
        raise NotFound(f"no tenant {name!r}: `headrace tenants` lists the names", param="tenant")
    return str(tenant_id)


def find_tenant_of_key(db: Database, key_id: str) -> str:
    """Return the id of a key's tenant, also for a key that has ended. Raises NotFound if there is no such key."""
    with db.begin() as connection:
        found = connection.execute(text("SELECT tenant_id FROM api_keys WHERE id = :id"), {"id": key_id})
        tenant_id = found.scalar_one_or_none()
    if tenant_id is None:
        raise NotFound(f"no API key {key_id}")
    return str(tenant_id)


def check_tenant_name(name: str) -> None:
    """Raise InvalidRequest for a name that is too long, or looks like another one on a screen."""
    if not 0 < len(name) <= _LONGEST_TENANT or not name.isprintable() or name != name.strip():
        raise InvalidRequest(f"a tenant's name has 1 to {_LONGEST_TENANT} printable characters", param="name")


def _create_tenant(connection: Connection, seal: Seal, name: str, actor: str) -> str:
    check_tenant_name(name)
    new = new_id("ten")
    values = {"id": new, "name": name, "secret": seal.seal_text(new_secret(), secret_context(new))}
    tenant_id = connection.execute(_INSERT_TENANT, values).scalar_one_or_none()
    if tenant_id is None:
        raise InvalidRequest(f"there is a tenant {name!r} already", param="name")
    record(connection, tenant_id, actor, "tenant.created", tenant_id, {"name": name}, after=name)
    return str(tenant_id)


def create_key(
    db: Database,
    tenant_id: str,
    name: str,
    scopes: Iterable[str],
    *,
    models: Iterable[str] | None = None,
    expires_s: float | None = None,
    actor: str,
) -> str:
    """Create a key and return its plaintext ``hr_<id>_<secret>``, which is not stored."""
    with db.begin(tenant_id=tenant_id) as connection:
        expires_at = None
        if expires_s is not None:
            expires_at = connection.execute(text("SELECT now()")).scalar_one() + timedelta(seconds=expires_s)
        rights = Rights(frozenset(scopes), None if models is None else frozenset(models), expires_at)
        return insert_key(connection, tenant_id, name, rights, actor)[1]


def insert_key(connection: Connection, tenant_id: str, name: str, rights: Rights, actor: str) -> tuple[str, str]:
    """Create a key; return its id and its plaintext. Raises InvalidRequest for invalid rights."""
    check_rights(rights)
    key_id, secret = new_id(_KEY_ID_PREFIX), secrets.token_urlsafe(32)
    values = {"id": key_id, "tenant_id": tenant_id, "name": name, "hash": _hash(secret)}
    fields = {"name": name, **rights.audit_fields()}
    connection.execute(_INSERT_KEY, values | fields | {"expires_at": rights.expires_at})
    record(connection, tenant_id, actor, "api_key.created", key_id, fields, after=fields)
    return key_id, f"{_PREFIX}_{key_id.removeprefix(f'{_KEY_ID_PREFIX}_')}_{secret}"


def check_rights(rights: Rights) -> None:
    """Raise InvalidRequest for an unknown scope, for no scope or no model, and for a model with a version."""
    if unknown := sorted(rights.scopes - SCOPES):
        raise InvalidRequest(f"unknown scopes: {', '.join(unknown)}: use {', '.join(sorted(SCOPES))}", param="scopes")
    if not rights.scopes:
        raise InvalidRequest("a key needs a scope", param="scopes")
    if rights.models is not None and not rights.models:
        raise InvalidRequest("name a model, or leave `models` out for every model", param="models")
    for name in sorted(rights.models or ()):
        if not name or base_model(name) != name:
            raise InvalidRequest(f"a model's name without a version, such as smollm2, not {name!r}", param="models")


def authenticate(db: Database, plaintext: str) -> Principal:
    """Return the principal of a key, and record its use, at most once a minute.

    Raises Unauthenticated, always with the same message, if the key is not valid; Forbidden if its tenant is disabled.
    """
    prefix, _, rest = plaintext.partition("_")
    name, _, secret = rest.partition("_")
    key_id = f"{_KEY_ID_PREFIX}_{name}"
    row = None
    if prefix == _PREFIX and name.isascii() and name.isalnum():
        with db.autocommit() as connection:
            row = connection.execute(_FIND, {"id": key_id}).one_or_none()
    is_right = hmac.compare_digest(_hash(secret), _NO_HASH if row is None else bytes(row.secret_hash))
    if row is None or not is_right:
        raise Unauthenticated("the API key is not valid: it was never issued, was revoked or has expired")
    principal = _principal(row, key_id)
    if row.is_use_to_note:
        with db.autocommit(tenant_id=row.tenant_id) as connection:
            connection.execute(_RECORD_USE, {"id": key_id})
    return principal


def principal_of(db: Database, tenant_id: str, key_id: str) -> Principal:
    """Return the principal for work that was accepted with a key, also if the key has ended meanwhile.

    Raises NotFound if the tenant never had this key, Forbidden if the tenant is disabled.
    """
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_RIGHTS, {"id": key_id, "tenant_id": tenant_id}).one_or_none()
    if row is None:
        raise NotFound(f"no API key {key_id}")
    return _principal(row, key_id)


def principal_of_key(db: Database, key_id: str) -> Principal:
    """Return the principal for work that a key has begun and that goes on only while the key is valid.

    Raises NotFound if the key is not valid any more, Forbidden if its tenant is disabled.
    """
    with db.autocommit() as connection:
        row = connection.execute(_FIND, {"id": key_id}).one_or_none()
    if row is None:
        raise NotFound(f"no valid API key {key_id}")
    return _principal(row, key_id)


def _principal(row: Row[Any], key_id: str) -> Principal:
    if row.is_disabled:
        raise Forbidden("this tenant is disabled: ask the operator of this server", code="tenant_disabled")
    models = None if row.models is None else frozenset(row.models)
    return Principal(row.tenant_id, key_id, frozenset(row.scopes), models)


def bootstrap(db: Database) -> str | None:
    """Create the first key, with every scope, for the tenant ``default``. Returns None if any key exists."""
    with db.begin() as connection:
        # A lock for the transaction: two processes that start together create only one key.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('headrace.keys.bootstrap'))"))
        if connection.execute(text("SELECT EXISTS (SELECT FROM api_keys)")).scalar_one():
            return None
        found = connection.execute(text("SELECT id FROM tenants WHERE name = :name"), {"name": DEFAULT_TENANT})
        tenant_id = found.scalar_one_or_none() or _create_tenant(connection, db.seal, DEFAULT_TENANT, "system")
        return insert_key(connection, tenant_id, "bootstrap", Rights(SCOPES), "system")[1]


def _hash(secret: str) -> bytes:
    # A header may contain bytes that are not Unicode text. Such a secret is only wrong, not an error.
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()

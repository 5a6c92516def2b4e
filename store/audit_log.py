"""The audit log: the actor, the action and the resource of each change.

A row is written in the transaction of its change: both are committed, or neither. A row holds no prompt and no secret:
callers pass names and ids only. The state before and after is stored as a hash.

The API binds each request's id and address to the context, and its threads inherit them. Without a bound caller the
address is the user and the host of the process.
"""

import hashlib
import os
import pwd
import socket
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from typing import Any

import orjson
from sqlalchemy import Connection, text

from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.json_text import dump_json

# A caller's address, or user@host.
MAX_ADDRESS_CHARS = 255


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One action. ``before_hash`` and ``after_hash``: SHA-256 in hex of the resource's state before and after it."""

    id: int
    tenant_id: str | None
    actor: str
    action: str
    resource: str
    detail: dict[str, Any]
    before_hash: str | None
    after_hash: str | None
    request_id: str | None
    address: str | None
    at: datetime
    # The place in the tenant's hash chain: see ``features.audit.hash_chain``.
    seq: int
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class _RequestOrigin:
    request_id: str | None
    address: str | None


_caller: ContextVar[_RequestOrigin | None] = ContextVar("headrace_audit_caller", default=None)


# Adds one entry; a trigger fills in its place, time and hashes.
_RECORD = text("""
INSERT INTO audit_log (tenant_id, actor, action, resource, detail, before_hash, after_hash, request_id, address)
VALUES (
    :tenant_id, :actor, :action, :resource, CAST(:detail AS jsonb), :before_hash, :after_hash, :request_id, :address
)
""")

# One tenant's entries that meet the conditions; a condition that is NULL does not count.
_ENTRIES = """
SELECT
    id, tenant_id, actor, action, resource, detail, before_hash, after_hash, request_id, address, at, seq, prev_hash,
    hash
FROM audit_log
WHERE tenant_id = :tenant_id
    AND (CAST(:since_s AS float8) IS NULL OR at >= to_timestamp(:since_s))
    AND (CAST(:until_s AS float8) IS NULL OR at < to_timestamp(:until_s))
    AND (CAST(:actions AS text[]) IS NULL OR action = ANY(:actions))
    AND (CAST(:actors AS text[]) IS NULL OR actor = ANY(:actors))
    AND (CAST(:resources AS text[]) IS NULL OR resource = ANY(:resources))
    AND (CAST(:older_than AS bigint) IS NULL OR id < :older_than)
    AND (CAST(:newer_than AS bigint) IS NULL OR id > :newer_than)
"""

_NEWEST = text(f"{_ENTRIES} ORDER BY id DESC LIMIT :limit")

_OLDEST = text(f"{_ENTRIES} ORDER BY id LIMIT :limit")


def bind_caller(request_id: str, address: str | None) -> None:
    """Set the request id and the address of the entries that this context, and its threads, will record."""
    _caller.set(_RequestOrigin(request_id, address))


@cache
def _process_address() -> str:
    """``user@host``: the user is looked up by its number, because environment variables can be set by the caller."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may be missing in the password file
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def record(
    connection: Connection,
    tenant_id: str | None,
    actor: str,
    action: str,
    resource: str,
    detail: Mapping[str, object],
    request_id: str | None = None,
    *,
    before: object = None,
    after: object = None,
    address: str | None = None,
) -> None:
    """Write one entry. ``tenant_id`` None: the resource belongs to no tenant, such as a model of the registry.

    ``before`` and ``after`` are JSON values of which only the hash is stored; None: the resource did not exist. The
    default request id and address are those of the context.
    """
    caller = _caller.get() or _RequestOrigin(None, _process_address())
    values = {
        "tenant_id": tenant_id,
        "actor": actor,
        "action": action,
        "resource": resource,
        "detail": dump_json(dict(detail)),
        "before_hash": hash_of(before),
        "after_hash": hash_of(after),
        "request_id": request_id or caller.request_id,
        "address": (address or caller.address or "")[:MAX_ADDRESS_CHARS] or None,
    }
    connection.execute(_RECORD, values)


def hash_of(value: object) -> str | None:
    """Return SHA-256, in hex, of the value as JSON with sorted keys and no spaces; None for None."""
    if value is None:
        return None
    try:
        return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
    except orjson.JSONEncodeError:
        # Without the cause: the encoder's message may quote the value.
        raise InvalidRequest("a value cannot be hashed: it is not JSON") from None


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Conditions on entries: since a time, until a time (Unix seconds), and lists of actions, actors and resources."""

    since_s: int | None = None
    until_s: int | None = None
    actions: Sequence[str] | None = None
    actors: Sequence[str] | None = None
    resources: Sequence[str] | None = None


def list_entries(
    db: Database,
    tenant_id: str,
    limit: int = 100,
    *,
    only: EntryFilter | None = None,
    older_than: int | None = None,
    newer_than: int | None = None,
) -> list[AuditEntry]:
    """Return a page of the tenant's entries, newest first.

    ``older_than`` and ``newer_than`` are ids of neighbouring pages. With ``newer_than`` alone the page is the one next
    to that id.
    """
    values = asdict(only or EntryFilter()) | {"tenant_id": tenant_id, "limit": limit}
    is_backwards = newer_than is not None and older_than is None
    with db.autocommit(tenant_id=tenant_id) as connection:
        values |= {"older_than": older_than, "newer_than": newer_than}
        rows = connection.execute(_OLDEST if is_backwards else _NEWEST, values).mappings().all()
    return [AuditEntry(**row) for row in (reversed(rows) if is_backwards else rows)]

"""The audit log: who did what to which resource. Written in the transaction of the deed, so that neither is without
the other. Knows no prompt and no secret: callers pass names and ids only, and of what was before and after a hash is
kept, not the value.

Where a deed came from need not be handed down to here: the API binds each request's id and address to its context,
which its threads inherit. Whoever binds nothing is named by the user and the host of the process.
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

from store.db.database import Database, dump_json
from store.errors import InvalidRequest

# A caller's address, or user@host.
MAX_ADDRESS_CHARS = 255


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One deed. ``before_hash`` and ``after_hash``: SHA-256 in hex of what the resource was and became."""

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
    # Its place in the tenant's chain: see ``store.audit.hash_chain``.
    seq: int
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class _Caller:
    request_id: str | None
    address: str | None


_caller: ContextVar[_Caller | None] = ContextVar("headrace_audit_caller", default=None)


def bind_caller(request_id: str, address: str | None) -> None:
    """Let what is recorded in this context, and in the threads that it starts, carry the request and its address."""
    _caller.set(_Caller(request_id, address))


@cache
def _process_address() -> str:
    """``user@host``: by the user's number, not by what the environment claims."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user need not be in the password file
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


_RECORD = text("""
INSERT INTO audit_log (tenant_id, actor, action, resource, detail, before_hash, after_hash, request_id, address)
VALUES (
    :tenant_id, :actor, :action, :resource, CAST(:detail AS jsonb), :before_hash, :after_hash, :request_id, :address
)
""")


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
    """Write one entry. ``tenant_id`` None is for what belongs to nobody, such as the model registry.

    ``before`` and ``after`` are JSON values of which only the hash is stored; None: there was or is nothing. Request
    and address are the context's unless they are given.
    """
    caller = _caller.get() or _Caller(None, _process_address())
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
        # From None: the encoder's message may quote the value.
        raise InvalidRequest("a value cannot be hashed: it is not JSON") from None


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries: from a time on and before one, in Unix seconds; only these actions, actors, resources."""

    since_s: int | None = None
    until_s: int | None = None
    actions: Sequence[str] | None = None
    actors: Sequence[str] | None = None
    resources: Sequence[str] | None = None


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


def list_entries(
    db: Database,
    tenant_id: str,
    limit: int = 100,
    *,
    only: EntryFilter | None = None,
    older_than: int | None = None,
    newer_than: int | None = None,
) -> list[AuditEntry]:
    """Return the tenant's newest entries, newest first, on this side of the ids that are given.

    With ``newer_than`` alone: those that come next to it, still newest first.
    """
    values = asdict(only or EntryFilter()) | {"tenant_id": tenant_id, "limit": limit}
    is_backwards = newer_than is not None and older_than is None
    with db.autocommit(tenant_id=tenant_id) as connection:
        values |= {"older_than": older_than, "newer_than": newer_than}
        rows = connection.execute(_OLDEST if is_backwards else _NEWEST, values).mappings().all()
    return [AuditEntry(**row) for row in (reversed(rows) if is_backwards else rows)]

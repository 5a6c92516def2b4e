"""Reads whole chains of the audit log, to verify or export them, and their heads.

Each page of a chain is read by its own statement. This is safe because the log only grows. A long chain therefore needs
neither a long transaction nor more memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import TextClause, text

from headrace.features.audit.hash_chain import Head, Row, chain_of
from headrace.store.db.database import Database

PAGE_ROWS = 2000

# A row with the fields of ``features.audit.hash_chain.FIELDS`` and the hash; the time is in the form that is hashed.
_ROW = """
SELECT
    action, actor, address, after_hash, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\\:MI\\:SS.US"Z"') AS at,
    before_hash, detail, hash, id, prev_hash, request_id, resource, seq, tenant_id, version
FROM audit_log WHERE """
_MORE = " AND seq >= :seq AND (seq, id) > (:seq, :id) ORDER BY seq, id LIMIT :limit"
# Rows without a place exist only if the table's constraints were removed.
_NO_PLACE = " AND seq IS NULL ORDER BY id LIMIT :limit"

_OF_TENANT = {part: text(f"{_ROW}tenant_id = :tenant_id{part}") for part in (_MORE, _NO_PLACE)}
_OF_SYSTEM = {part: text(f"{_ROW}tenant_id IS NULL{part}") for part in (_MORE, _NO_PLACE)}


# All tenants with entries: one step in the index for each tenant, whatever the number of its rows.
_TENANTS = """
WITH RECURSIVE chains (tenant_id) AS (
    (SELECT tenant_id FROM audit_log WHERE tenant_id IS NOT NULL ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant_id FROM audit_log WHERE tenant_id > chains.tenant_id ORDER BY tenant_id LIMIT 1)
    FROM chains WHERE chains.tenant_id IS NOT NULL
)
"""

# The tenants that have a chain; NULL stands for the chain ``system``.
_CHAINS = text(f"""{_TENANTS}
SELECT tenant_id FROM chains WHERE tenant_id IS NOT NULL
UNION ALL (SELECT NULL WHERE EXISTS (SELECT FROM audit_log WHERE tenant_id IS NULL))
""")

# The newest row of each chain, and the time now.
_HEADS = text(f"""{_TENANTS}
SELECT newest.tenant_id, newest.seq, newest.hash, to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\\:MI\\:SS"Z"')
FROM chains CROSS JOIN LATERAL (
    SELECT tenant_id, seq, hash FROM audit_log WHERE tenant_id = chains.tenant_id ORDER BY seq DESC LIMIT 1
) AS newest
UNION ALL (
    SELECT tenant_id, seq, hash, to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\\:MI\\:SS"Z"')
    FROM audit_log WHERE tenant_id IS NULL ORDER BY seq DESC LIMIT 1
)
""")

# The newest row of each chain, as the trigger recorded it.
_RECORDED_HEADS = text("""
SELECT chain, seq, hash, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\\:MI\\:SS"Z"')
FROM audit_heads ORDER BY chain
""")

# The triggers on the log, and whether they are on.
_GUARDS = text("SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'audit_log'::regclass AND NOT tgisinternal")


def pages(db: Database, tenant_id: str | None) -> Iterator[list[Row]]:
    """Yield a chain's rows in order, in pages, in the form that is hashed and exported; None: the chain ``system``."""
    statements = _OF_SYSTEM if tenant_id is None else _OF_TENANT
    values: dict[str, Any] = {"limit": PAGE_ROWS} | ({} if tenant_id is None else {"tenant_id": tenant_id})
    yield _page(db, tenant_id, statements[_NO_PLACE], values)
    values |= {"seq": -(1 << 62), "id": -(1 << 62)}
    while page := _page(db, tenant_id, statements[_MORE], values):
        yield page
        values |= {"seq": page[-1]["seq"], "id": page[-1]["id"]}


def _page(db: Database, tenant_id: str | None, statement: TextClause, values: dict[str, Any]) -> list[Row]:
    with db.autocommit(tenant_id=tenant_id) as connection:
        return [dict(row) for row in connection.execute(statement, values).mappings()]


def rows(db: Database, tenant_id: str | None) -> Iterator[Row]:
    """Yield the rows of a chain one by one."""
    for page in pages(db, tenant_id):
        yield from page


def chains(db: Database) -> Sequence[str | None]:
    """Return the tenants that have a chain; None is the chain ``system``."""
    with db.autocommit() as connection:
        return connection.execute(_CHAINS).scalars().all()


def heads(db: Database) -> list[Head]:
    """Return the head of each chain, from the newest row in the log."""
    with db.autocommit() as connection:
        return [Head(chain_of(tenant), seq, digest, at) for tenant, seq, digest, at in connection.execute(_HEADS)]


def recorded_heads(db: Database) -> list[Head]:
    """Return the head of each chain, as the trigger recorded it in ``audit_heads`` when the chain was last written.

    They show that the end of a chain was cut off, even if no head was kept elsewhere.
    """
    with db.autocommit() as connection:
        return [Head(*row) for row in connection.execute(_RECORDED_HEADS)]


# O: on, except in replication sessions, which copy rows unchanged. A: on in every session.
_NEEDED = {"headrace_audit_chained": "O", "headrace_audit_append_only": "A"}


def missing_guards(db: Database) -> list[str]:
    """Return the names of the triggers that should keep the log append-only and chained, but are missing or off."""
    with db.autocommit() as connection:
        found = {row.tgname: row.tgenabled for row in connection.execute(_GUARDS)}
    return [name for name, state in _NEEDED.items() if found.get(name) != state]

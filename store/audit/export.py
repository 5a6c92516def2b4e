"""Whole chains of the audit log, for whoever verifies or exports them, and their heads.

A chain is read in pages, each by its own statement: the log only grows, so a long one needs no long transaction, and
no more memory than a short one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import TextClause, text

from store.audit.hash_chain import Head, Row, chain_of
from store.db.database import Database

PAGE_ROWS = 2000

# The fields of ``store.audit.hash_chain.FIELDS`` and the hash; the time as it is hashed.
_ROW = """
SELECT
    action, actor, address, after_hash, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\\:MI\\:SS.US"Z"') AS at,
    before_hash, detail, hash, id, prev_hash, request_id, resource, seq, tenant_id, version
FROM audit_log WHERE """
_MORE = " AND seq >= :seq AND (seq, id) > (:seq, :id) ORDER BY seq, id LIMIT :limit"
# Only a log that has lost its constraints has such rows.
_NO_PLACE = " AND seq IS NULL ORDER BY id LIMIT :limit"

_OF_TENANT = {part: text(f"{_ROW}tenant_id = :tenant_id{part}") for part in (_MORE, _NO_PLACE)}
_OF_NOBODY = {part: text(f"{_ROW}tenant_id IS NULL{part}") for part in (_MORE, _NO_PLACE)}


def pages(db: Database, tenant_id: str | None) -> Iterator[list[Row]]:
    """Yield the rows of a chain in its order, as they are hashed and exported; None: the chain ``system``."""
    statements = _OF_NOBODY if tenant_id is None else _OF_TENANT
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


# One step in the index from each tenant to the next, however many rows they have.
_TENANTS = """
WITH RECURSIVE chains (tenant_id) AS (
    (SELECT tenant_id FROM audit_log WHERE tenant_id IS NOT NULL ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant_id FROM audit_log WHERE tenant_id > chains.tenant_id ORDER BY tenant_id LIMIT 1)
    FROM chains WHERE chains.tenant_id IS NOT NULL
)
"""

_CHAINS = text(f"""{_TENANTS}
SELECT tenant_id FROM chains WHERE tenant_id IS NOT NULL
UNION ALL (SELECT NULL WHERE EXISTS (SELECT FROM audit_log WHERE tenant_id IS NULL))
""")


def chains(db: Database) -> Sequence[str | None]:
    """Return whose chains there are; None is the chain ``system``."""
    with db.autocommit() as connection:
        return connection.execute(_CHAINS).scalars().all()


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


def heads(db: Database) -> list[Head]:
    """Return where every chain stands."""
    with db.autocommit() as connection:
        return [Head(chain_of(tenant), seq, digest, at) for tenant, seq, digest, at in connection.execute(_HEADS)]


_ENDS = text("""
SELECT chain, seq, hash, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\\:MI\\:SS"Z"')
FROM audit_heads ORDER BY chain
""")


def ends(db: Database) -> list[Head]:
    """Return where every chain ended when it was last written to, as the trigger noted it beside the log.

    Whoever cuts off an end and forgets these is found out without a head that was kept elsewhere.
    """
    with db.autocommit() as connection:
        return [Head(*row) for row in connection.execute(_ENDS)]


_GUARDS = text("SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'audit_log'::regclass AND NOT tgisinternal")
# O: for every session but those of replication, which copy rows as they are. A: for every session.
_NEEDED = {"headrace_audit_chained": "O", "headrace_audit_append_only": "A"}


def missing_guards(db: Database) -> list[str]:
    """Return the names of the triggers that keep the log append-only and chained, as far as they are gone or off."""
    with db.autocommit() as connection:
        found = {row.tgname: row.tgenabled for row in connection.execute(_GUARDS)}
    return [name for name, state in _NEEDED.items() if found.get(name) != state]

"""HNSW indexes of large vector stores: one for each store, built by the operator's command after the load.

An index belongs to the schema's owner, and building one takes minutes, so no process of the API or of workers does it.
An index of its own for each store gives a search every neighbour that it looks at: in an index of all stores most of
them would be of others. Small stores are compared exactly, which is fast there.
"""

import re

from sqlalchemy import Connection, text

from headrace.store.db.database import Database

PREFIX = "hnsw_"
FEWEST_PASSAGES = 5000
"""Of a store that gets an index."""

MOST_NUMBERS = 2000
"""pgvector indexes vectors of up to so many numbers."""

_STORE_ID = re.compile(r"vs_[0-9a-f]{32}")

HAS_EXTENSION = text("SELECT to_regtype('vector') IS NOT NULL")

_LARGE = text("""
SELECT vector_stores.id, dimensions FROM vector_stores
WHERE deleted_at IS NULL AND dimensions <= :most AND (
    SELECT sum(num_passages) FROM vector_store_files AS attached
    WHERE attached.tenant_id = vector_stores.tenant_id AND attached.store_id = vector_stores.id) >= :fewest
ORDER BY id
""")

_INDEXES = text("""
SELECT index.relname AS name, pg_index.indisvalid AS is_whole FROM pg_index
JOIN pg_class AS index ON index.oid = indexrelid
WHERE indrelid = to_regclass('vector_store_passages') AND index.relname LIKE 'hnsw\\_%'
""")


def refresh(db: Database, *, fewest: int = FEWEST_PASSAGES) -> list[str]:
    """Build missing indexes, and drop those of stores that are deleted or small. Returns a line for each change.

    Searches and files that are being added do not wait. May be repeated, also after it was interrupted.
    """
    with db.autocommit() as connection:
        if not connection.execute(HAS_EXTENSION).scalar_one():
            return ["pgvector is not there: every search compares all vectors of its store (docs/retrieval.md)"]
        large = connection.execute(_LARGE, {"most": MOST_NUMBERS, "fewest": fewest}).all()
        wanted = {f"{PREFIX}{row.id}": (row.id, row.dimensions) for row in large if _STORE_ID.fullmatch(row.id)}
        known = {row.name: row.is_whole for row in connection.execute(_INDEXES)}
        # A build waits for older transactions, and takes long.
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SET lock_timeout = 0"))
        try:
            return [
                *(_drop(connection, name) for name, is_whole in known.items() if name not in wanted or not is_whole),
                *(_build(connection, *found) for name, found in wanted.items() if not known.get(name)),
            ]
        finally:
            connection.execute(text("RESET statement_timeout"))
            connection.execute(text("RESET lock_timeout"))


def _drop(connection: Connection, name: str) -> str:
    connection.execute(text(f'DROP INDEX CONCURRENTLY IF EXISTS "{name}"'))
    return f"dropped {name}"


def _build(connection: Connection, store_id: str, dimensions: int) -> str:
    connection.execute(
        text(
            f"CREATE INDEX CONCURRENTLY {PREFIX}{store_id} ON vector_store_passages "
            f"USING hnsw ((CAST(embedding AS vector({int(dimensions)}))) vector_cosine_ops) "
            f"WHERE store_id = '{store_id}'"
        )
    )
    return f"built {PREFIX}{store_id}"

"""Online changes of big tables, for revisions: they block no reader and no writer. Rules: ``docs/migrations.md``.

Each step ends the current transaction, because Postgres allows these changes only outside of one. So a revision calls
them first; its other changes and the record of the revision are one transaction. All steps can be repeated, so an
interrupted revision can start again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

_IS_WHOLE = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")


def add_index(
    name: str,
    table: str,
    columns: Sequence[str | sa.TextClause],
    *,
    unique: bool = False,
    where: str | None = None,
    nulls_not_distinct: bool = False,
) -> None:
    """Build an index concurrently. An existing index of this name stays, unless it is invalid."""
    is_whole = op.get_bind().execute(_IS_WHOLE, {"name": name}).scalar_one_or_none()
    if is_whole:
        return
    drop_index(name)
    with _outside_a_transaction(), _waiting():
        op.create_index(
            name,
            table,
            columns,
            unique=unique,
            postgresql_where=None if where is None else sa.text(where),
            postgresql_nulls_not_distinct=nulls_not_distinct or None,
            postgresql_concurrently=True,
        )


def drop_index(name: str) -> None:
    """Drop an index concurrently, if it exists."""
    with _outside_a_transaction(), _waiting():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


def add_constraint(table: str, name: str, definition: str) -> None:
    """Add a check or a foreign key, written as SQL: for new rows at once, then validated for old rows without a lock.

    If an old row violates it, this fails; the constraint stays without validation, and the revision can be repeated.
    """
    with _outside_a_transaction():
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}")
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition} NOT VALID")
        with _waiting():
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


@contextmanager
def _outside_a_transaction() -> Iterator[None]:
    begun = op.get_bind().execute(sa.text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")).scalar_one()
    if begun:
        raise RuntimeError(
            "call the steps of headrace.migrations.online before anything else that the revision changes"
        )
    with op.get_context().autocommit_block():
        yield


@contextmanager
def _waiting() -> Iterator[None]:
    """Wait for older transactions without a timeout: no other statement waits behind these."""
    limit = op.get_bind().execute(sa.text("SHOW lock_timeout")).scalar_one()
    op.execute("SET lock_timeout = 0")
    try:
        yield
    finally:
        op.execute(f"SET lock_timeout = '{limit}'")

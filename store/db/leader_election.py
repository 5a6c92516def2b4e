"""Leader election: the process with an advisory lock of Postgres is the leader.

The lock belongs to a transaction that stays open while the process leads. So it is free when the process or its
connection dies, and it also holds behind a pooler that gives a server's session to another client after each
transaction. Between its statements the transaction has no snapshot and so keeps no row from being vacuumed. The
connection of a stopped process stays open; so the server ends a leader that was silent for ``SILENCE_S``. A leader that
lost its lock may still finish a piece of work, so all work of leaders must be safe with two leaders at once.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from headrace.store.db.database import Database
from headrace.store.errors import Unavailable

SILENCE_S = 15.0
"""A leader that does not call ``check`` for so long loses the lead."""

CHECK_S = 1.0

# A statement without a snapshot. One that reads keeps its own until the next, and ``CREATE INDEX CONCURRENTLY`` waits
# for the end of a transaction that had one: it would wait for as long as this process leads.
_LOOK = text("SHOW transaction_isolation")

# Take the lock if it is free; the server bears so much silence in this transaction.
_TRY = text("""
SELECT pg_try_advisory_xact_lock(:key) AS is_held,
    set_config('idle_in_transaction_session_timeout', :silence, true) AS silence
""")


class Leadership:
    """The held lock. For one thread, which must call ``check`` more often than every ``SILENCE_S`` seconds."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._checked_at = time.monotonic()

    def check(self) -> None:
        """Raise Unavailable if the lock was lost. Queries Postgres at most once a second."""
        if time.monotonic() - self._checked_at < CHECK_S:
            return
        try:
            self.connection.execute(_LOOK)  # while the transaction lives, it has its lock
        except DBAPIError as error:
            raise Unavailable("the connection that holds the lead is gone", code="database_unavailable") from error
        self._checked_at = time.monotonic()


@contextmanager
def lead(db: Database, key: int, *, silence_s: float = SILENCE_S) -> Iterator[Leadership | None]:
    """Hold the lock ``key`` for the block; yield None if another session holds it. Raises Unavailable."""
    with db.connection() as connection:
        found = connection.execute(_TRY, {"key": key, "silence": f"{round(silence_s * 1000)}ms"}).one()
        if found.is_held:
            try:
                connection.execute(_LOOK)
                yield Leadership(connection)
            finally:
                with suppress(DBAPIError):  # a broken connection has released its lock
                    connection.rollback()
            return
    yield None

"""Leader election: the process with an advisory lock of Postgres is the leader.

The lock belongs to a connection of its own, so it is free when the process or its connection dies. The connection of a
stopped process stays open; so the server ends the session of a leader that was silent for ``SILENCE_S``. A leader that
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

# Find out whether this session holds the lock.
_HOLDS = text("""
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted AND objsubid = 1
        AND (CAST(classid AS bigint) << 32) | CAST(objid AS bigint) = :key)
""")


class Leadership:
    """The held lock. For one thread, which must call ``check`` more often than every ``SILENCE_S`` seconds."""

    def __init__(self, connection: Connection, key: int) -> None:
        self.connection = connection
        self._key = key
        self._checked_at = time.monotonic()

    def check(self) -> None:
        """Raise Unavailable if the lock was lost. Queries Postgres at most once a second."""
        if time.monotonic() - self._checked_at < CHECK_S:
            return
        try:
            holds = self.connection.execute(_HOLDS, {"key": self._key}).scalar_one()
        except DBAPIError as error:
            raise Unavailable("the connection that holds the lead is gone", code="database_unavailable") from error
        if not holds:
            raise Unavailable("the lock of the lead is gone", code="database_unavailable")
        self._checked_at = time.monotonic()


@contextmanager
def lead(db: Database, key: int, *, silence_s: float = SILENCE_S) -> Iterator[Leadership | None]:
    """Hold the lock ``key`` for the block; yield None if another session holds it. Raises Unavailable."""
    with db.autocommit() as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar_one():
            yield None
            return
        limit = f"{round(silence_s * 1000)}ms"
        connection.execute(text("SELECT set_config('idle_session_timeout', :limit, false)"), {"limit": limit})
        try:
            yield Leadership(connection, key)
        finally:
            if not connection.invalidated:
                with suppress(DBAPIError):  # a broken connection has released its lock
                    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})
                    connection.execute(text("RESET idle_session_timeout"))

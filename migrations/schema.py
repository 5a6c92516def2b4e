"""Bringing the schema to the newest revision, and the history of revisions. Knows Alembic; configured here, in code.

Two migrators at once are safe: the later one waits for an advisory lock, and finds nothing left to do. DDL gives up
after a second of waiting for a table, because the running application waits behind it, and tries again after a pause.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from store.db.database import Database
from store.errors import Unavailable

# "migrate!" in ASCII; any constant does that nothing else on the server locks.
MIGRATION_LOCK = 0x6D696772_61746521
PATIENCE_S = 120.0
"""For so long a migrator waits for another one, and tries again to get the locks on tables."""
DDL_LOCK_TIMEOUT = "1s"
_PAUSE_S = 0.5
# lock_not_available, deadlock_detected
_NOT_LOCKED = frozenset({"55P03", "40P01"})


def upgrade(db: Database, revision: str = "head") -> str | None:
    """Apply what is missing, and return the revision the schema was at before (None: empty).

    Each revision is applied as a whole, or can be run again if it has steps of ``migrations.online``. Raises
    Unavailable if Postgres is away, or if a lock could not be had in time; the revisions before that one stay.
    """
    with _our_turn(db):
        with db.begin() as connection:
            before = current(connection)
        _patiently(db, lambda connection: command.upgrade(_config(connection), revision))
    return before


def downgrade(db: Database, revision: str) -> None:
    """Take revisions back down to ``revision``; ``base`` is the empty schema."""
    with _our_turn(db):
        _patiently(db, lambda connection: command.downgrade(_config(connection), revision))


def write_revision(db: Database, message: str) -> Path:
    """Write the next file under ``versions/`` from how the tables differ from the migrated schema; return its path."""
    next_id = f"{int(head()) + 1:04}"
    with _connection(db) as connection:
        command.revision(_config(connection), message, autogenerate=True, rev_id=next_id)
    return next(Path(_scripts().versions).glob(f"{next_id}_*.py"))


def current(connection: Connection) -> str | None:
    """Return the revision the schema is at, None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """Return the newest revision there is a file for."""
    return _scripts().get_current_head() or ""


def history(db: Database) -> list[str]:
    """Return a line for each revision, oldest first, saying which are applied."""
    with db.begin() as connection:
        at = current(connection) or ""
    scripts = reversed(list(_scripts().walk_revisions()))
    return [f"{s.revision}  {'applied' if s.revision <= at else 'missing'}  {s.doc}" for s in scripts]


@contextmanager
def _our_turn(db: Database) -> Iterator[None]:
    """Hold the migrators' lock on a connection of its own, which a dying process gives back.

    Asked for again and again: a statement that waits for it would hold a snapshot, and the migrator that has the lock
    may build an index that waits for old snapshots to end.
    """
    with db.autocommit() as connection:
        deadline = time.monotonic() + PATIENCE_S
        while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": MIGRATION_LOCK}).scalar_one():
            if time.monotonic() > deadline:
                raise Unavailable("another migration has not ended yet: try again", code="database_unavailable")
            time.sleep(_PAUSE_S)
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})


def _patiently(db: Database, run: Callable[[Connection], None]) -> None:
    """Run until each lock on a table was free within ``DDL_LOCK_TIMEOUT``; between tries others get their turn."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with _connection(db) as connection:
                run(connection)
            return
        except Unavailable as error:
            if not _was_not_locked(error) or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_S)


def _was_not_locked(error: Unavailable) -> bool:
    return getattr(getattr(error.__cause__, "orig", None), "sqlstate", None) in _NOT_LOCKED


@contextmanager
def _connection(db: Database) -> Iterator[Connection]:
    """Hold a connection outside of a transaction, for Alembic to begin one for each revision."""
    with db.connection() as connection:
        connection.execute(text("SELECT set_config('lock_timeout', :limit, false)"), {"limit": DDL_LOCK_TIMEOUT})
        connection.execute(text("SET statement_timeout = 0"))  # an index on a big table takes its time
        connection.commit()
        try:
            yield connection
        finally:
            connection.rollback()
            connection.execute(text("RESET ALL"))
            connection.commit()


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())

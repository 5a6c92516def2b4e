"""Bringing the schema to the newest revision, and the history of revisions. Knows Alembic; configured here, in code.

Two migrators at once are safe: they queue for an advisory lock, and the later one finds nothing left to do. DDL gives
up after a few seconds of waiting for a table, so that it does not make the running application wait behind it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from store.db import Database

# "migrate!" in ASCII; any constant does that nothing else on the server locks.
MIGRATION_LOCK = 0x6D696772_61746521
TURN_TIMEOUT = "120s"
DDL_LOCK_TIMEOUT = "5s"


def upgrade(db: Database, revision: str = "head") -> str | None:
    """Apply what is missing, all or nothing, and return the revision the schema was at before (None: empty).

    Raises Unavailable if Postgres is away, or if a lock could not be had in time; nothing is changed then.
    """
    with _our_turn(db), _transaction(db) as connection:
        before = current(connection)
        command.upgrade(_config(connection), revision)
    return before


def downgrade(db: Database, revision: str) -> None:
    """Take revisions back down to ``revision``; ``base`` is the empty schema."""
    with _our_turn(db), _transaction(db) as connection:
        command.downgrade(_config(connection), revision)


def write_revision(db: Database, message: str) -> Path:
    """Write the next file under ``versions/`` from how the tables differ from the migrated schema; return its path."""
    next_id = f"{int(head()) + 1:04}"
    with _transaction(db) as connection:
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
    """Hold the migrators' lock on a connection of its own, which a dying process gives back."""
    with db.autocommit() as connection:
        connection.execute(text("SELECT set_config('lock_timeout', :limit, false)"), {"limit": TURN_TIMEOUT})
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
            connection.execute(text("RESET ALL"))


@contextmanager
def _transaction(db: Database) -> Iterator[Connection]:
    with db.begin() as connection:
        connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), {"limit": DDL_LOCK_TIMEOUT})
        connection.execute(text("SET LOCAL statement_timeout = 0"))  # an index on a big table takes its time
        yield connection


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())

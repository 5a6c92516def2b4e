"""Upgrades the schema to the newest revision, and lists revisions. Alembic is configured here, in code.

Concurrent migrations are safe: the later one waits for an advisory lock and finds nothing left to do. DDL waits at most
a second for a table, because the running application waits behind it, and tries again after a pause.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from headrace.store.db.database import Database
from headrace.store.errors import SettingsError, Unavailable

VERSIONS = Path(__file__).parent / "versions"
"""The folder of the revisions."""
# "migrate!" in ASCII; any constant that no other lock on the server uses.
MIGRATION_LOCK = 0x6D696772_61746521
PATIENCE_S = 120.0
"""Time limit for waiting for another migration, and for repeated attempts to lock tables."""
DDL_LOCK_TIMEOUT = "1s"
_PAUSE_S = 0.5
# lock_not_available, deadlock_detected
_NOT_LOCKED = frozenset({"55P03", "40P01"})


def upgrade(db: Database, revision: str = "head") -> str | None:
    """Apply missing revisions, and return the former revision (None: empty schema).

    A revision is applied completely, or can be repeated if it has steps of ``migrations.online``. Raises Unavailable if
    Postgres does not answer, or if a lock was not available in time; earlier revisions stay applied. Raises
    SettingsError, and changes nothing, if this version does not know the revision of the schema, or behind a pooler.
    """
    _refuse_pooler(db)
    with _our_turn(db):
        with db.begin() as connection:
            before = current(connection)
        _refuse_unknown(before)
        _patiently(db, lambda connection: command.upgrade(_config(connection), revision))
    return before


def write_revision(db: Database, message: str) -> Path:
    """Write a new revision in ``versions/`` from the differences of tables and schema, and return its path."""
    next_id = f"{int(head()) + 1:04}"
    with _connection(db) as connection:
        command.revision(_config(connection), message, autogenerate=True, rev_id=next_id)
    return next(Path(_scripts().versions).glob(f"{next_id}_*.py"))


def current(connection: Connection) -> str | None:
    """Return the revision of the schema; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """Return the newest revision in ``versions/``."""
    return _scripts().get_current_head() or ""


def history(db: Database) -> list[str]:
    """Return one line for each revision, oldest first, with a mark for those that are applied."""
    with db.begin() as connection:
        at = current(connection) or ""
    scripts = reversed(list(_scripts().walk_revisions()))
    return [f"{s.revision}  {'applied' if s.revision <= at else 'missing'}  {s.doc}" for s in scripts]


def _refuse_pooler(db: Database) -> None:
    """Raise SettingsError if the session is not the client's own: its lock and limits would be left to others."""
    with db.autocommit() as connection:
        driver: Any = connection.connection.driver_connection
        if driver.info.backend_pid != connection.execute(text("SELECT pg_backend_pid()")).scalar_one():
            raise SettingsError("DATABASE_URL: migrations cannot go through a pooler: give the address of Postgres")


def _refuse_unknown(found: str | None) -> None:
    known = [script.revision for script in _scripts().walk_revisions()]
    if found is None or found in known:
        return
    if found > head():
        raise SettingsError(
            f"the schema is at {found}, and this version knows no revision after {head()}: run `headrace migrate` of "
            f"the version that made it, or of a newer one"
        )
    raise SettingsError(
        f"the schema is at {found}, from before the first version, which begins at {min(known)}. It was not changed, "
        f"and it cannot be migrated: use an empty database, or see docs/migrations.md"
    )


@contextmanager
def _our_turn(db: Database) -> Iterator[None]:
    """Hold the migration lock on a separate connection; it is released if the process dies.

    The lock is polled: a statement that waits for it would hold a snapshot, and the other migration may build an index
    that waits for old snapshots to end.
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
    """Repeat until all table locks were available within ``DDL_LOCK_TIMEOUT``; others run between attempts.

    The time limit counts for each revision from its first failure: a step before it may take long on a big table.
    """
    deadlines: dict[str | None, float] = {}
    while True:
        try:
            with _connection(db) as connection:
                run(connection)
            return
        except Unavailable as error:
            if not _was_not_locked(error):
                raise
            with db.begin() as connection:
                at = current(connection)
            if time.monotonic() > deadlines.setdefault(at, time.monotonic() + PATIENCE_S):
                raise
        time.sleep(_PAUSE_S)


def _was_not_locked(error: Unavailable) -> bool:
    return getattr(getattr(error.__cause__, "orig", None), "sqlstate", None) in _NOT_LOCKED


@contextmanager
def _connection(db: Database) -> Iterator[Connection]:
    """Hold a connection without a transaction; Alembic starts one for each revision."""
    with db.connection() as connection:
        connection.execute(text("SELECT set_config('lock_timeout', :limit, false)"), {"limit": DDL_LOCK_TIMEOUT})
        connection.execute(text("SET statement_timeout = 0"))  # an index on a big table takes long
        # Between its statements a revision reads and compiles files, which takes seconds on a busy machine.
        connection.execute(text("SET idle_in_transaction_session_timeout = '2min'"))
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
    config.set_main_option("version_locations", str(VERSIONS))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())

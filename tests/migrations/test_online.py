"""No migration blocks the running release: with full tables, no long operation runs under a blocking lock.

Not measured in seconds, because the machine may be busy. For each statement of a revision Postgres reports which tables
its transaction locks against readers or writers, and how many pages of large tables it reads meanwhile.
"""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, make_url, text
from sqlalchemy.exc import IntegrityError

from headrace.migrations import schema
from headrace.migrations.drift import find_drift
from headrace.migrations.schema import head, upgrade
from headrace.store.db import leader_election
from headrace.store.db.database import Database
from headrace.store.db.leader_election import lead
from headrace.store.ids import new_id
from headrace.store.settings import Settings
from tests.processes import WAIT_S

FIRST = "0100"
"""The revision that makes the tables, which are empty then."""

ROWS = 4000
MOST_PAGES = 20
MOST_ROWS = 1000
LONGEST_WAIT_S = 1.0

# As real ids: they are in the order of time.
JOB = "'job_0197' || lpad(n::text, 28, '0')"

# The tables that grow with use, and what a row has that is not plain from a column's name and type.
BIG: dict[str, dict[str, str]] = {
    "blobs": {"digest": "'digest-' || n"},
    "files": {"digest": "'digest-' || n", "purpose": "'batch'"},
    "batches": {"status": "'completed'", "input_digest": "'digest-' || n", "completed_at": "now()"},
    "jobs": {"id": JOB, "state": "'succeeded'", "completed_at": "now()", "output": "'{}'"},
    "job_terminal": {"state": "'succeeded'"},
    "job_streams": {},
    "job_checkpoints": {},
    "job_events": {},
    "attempts": {},
    "dead_letters": {},
    "idempotency_keys": {"key": "'key-' || n"},
    "responses": {},
    "batch_lines": {"job_id": JOB, "outcome": "'succeeded'"},
    "webhook_deliveries": {"job_id": JOB},
    "webhook_attempts": {"delivery_id": "'webhook_deliveries-' || n"},
    "usage_ledger": {"state": "'succeeded'"},
    "audit_log": {"seq": "n"},
}

_COLUMNS = text("""
SELECT column_name, data_type, is_nullable = 'YES' OR column_default IS NOT NULL OR is_identity = 'YES' AS may_be_left
FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = :table
""")

_BY_TYPE = {
    "jsonb": "'{}'::jsonb",
    "boolean": "false",
    "timestamp with time zone": "now() - make_interval(secs => n)",
    "bytea": "''",
    "ARRAY": "'{}'",
    "character varying": "'text of a usual length'",
    "text": "'text of a usual length'",
}


def fill(db: Database) -> None:
    """Put ``ROWS`` rows into each big table, of ten tenants, so that the foreign keys between them hold."""
    with db.begin() as connection:
        # No foreign keys, no triggers that count.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(
            text(
                "INSERT INTO tenants (id, name, webhook_secret) SELECT 'ten_' || n, n, '' FROM generate_series(0, 9) n"
            )
        )
        for table, given in BIG.items():
            values = dict(given)
            for name, kind, may_be_left in connection.execute(_COLUMNS, {"table": table}).all():
                if name not in values and not may_be_left:
                    values[name] = _value(table, name, kind)
            connection.exec_driver_sql(
                f"INSERT INTO {table} ({', '.join(values)}) SELECT {', '.join(values.values())} "
                f"FROM generate_series(1, {ROWS}) AS n"
            )


def _value(table: str, name: str, kind: str) -> str:
    match name:
        case "id":
            return f"'{table}-' || n"
        case "tenant_id":
            return "'ten_' || mod(n, 10)"
        case "job_id":
            return JOB
        case "batch_id":
            return "'batches-' || n"
        case _:
            return _BY_TYPE.get(kind, "1")


_PAGES = """
SELECT sum(pg_stat_get_xact_blocks_fetched(oid)), sum(pg_stat_get_xact_tuples_updated(oid)
    + pg_stat_get_xact_tuples_deleted(oid))
FROM pg_class WHERE relname = ANY(%s) AND relkind = 'r' AND relnamespace = to_regnamespace('public')
"""

# These modes keep out writers, the last one readers too.
_LOCKED = """
SELECT DISTINCT relname FROM pg_locks JOIN pg_class ON pg_class.oid = relation
WHERE pid = pg_backend_pid() AND granted AND relname = ANY(%s)
    AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""

_LOCK_TIMEOUT = "SELECT extract(epoch FROM current_setting('lock_timeout')::interval)"


class Audit:
    """Violations in the statements that SQLAlchemy executed."""

    def __init__(self) -> None:
        self.findings: list[str] = []
        self._before: tuple[int, int, set[str]] = (0, 0, set())

    def before(self, _connection: Any, cursor: Any, statement: str, *_rest: Any) -> None:
        driver = cursor.connection
        if driver.autocommit:
            if "CONCURRENTLY" in statement.upper():
                return  # takes no lock that others wait for, and runs only outside of a transaction
            driver.execute("BEGIN")  # so that what it locked can be seen after it
        self._before = self._look(driver)

    def after(self, _connection: Any, cursor: Any, statement: str, *_rest: Any) -> None:
        driver = cursor.connection
        if "CONCURRENTLY" in statement.upper():
            return
        pages_before, rows_before, locked_before = self._before
        pages, rows, locked = self._look(driver)
        told = re.sub(r"\s+", " ", statement).strip()[:200]
        if locked and pages - pages_before > MOST_PAGES:
            self.findings.append(f"reads {pages - pages_before} pages while others wait for {sorted(locked)}: {told}")
        if rows > MOST_ROWS and rows > rows_before:
            self.findings.append(f"holds the locks of {rows} rows that it changed: {told}")
        (wait_s,) = driver.execute(_LOCK_TIMEOUT).fetchone()
        if locked - locked_before and not 0 < wait_s <= LONGEST_WAIT_S:
            self.findings.append(f"waits for {sorted(locked)} up to {wait_s} s, and others behind it: {told}")
        if driver.autocommit:
            driver.execute("COMMIT")

    def _look(self, driver: Any) -> tuple[int, int, set[str]]:
        pages, rows = driver.execute(_PAGES, ([*BIG, *(f"{table}_old" for table in BIG)],)).fetchone()
        return int(pages or 0), int(rows or 0), {name for (name,) in driver.execute(_LOCKED, ([*BIG],))}


@contextmanager
def audited() -> Iterator[Audit]:
    audit = Audit()
    event.listen(Engine, "before_cursor_execute", audit.before)
    event.listen(Engine, "after_cursor_execute", audit.after)
    try:
        yield audit
    finally:
        event.remove(Engine, "before_cursor_execute", audit.before)
        event.remove(Engine, "after_cursor_execute", audit.after)


@pytest.fixture
def filled(db: Database, settings: Settings) -> Iterator[Database]:
    """A database of this test's own at the first revision, with full tables."""
    name = new_id("test")
    with db.autocommit() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(settings.database_url).set(database=name).render_as_string(hide_password=False)
    database = Database(url, pool_size=3, application_name="tests")
    try:
        upgrade(database, FIRST)
        fill(database)
        yield database
    finally:
        database.close()
        with db.autocommit() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


# As a revision of the next release might be: two steps outside a transaction, then a statement in one.
NEXT = """
from alembic import op

from headrace.migrations import online

revision, down_revision = "{revision}", "{before}"


def upgrade():
    online.add_index("ix_jobs_made_up", "jobs", ["completed_at", "id"])
    online.add_constraint("attempts", "ck_attempts_made_up", "CHECK (attempt < 1000)")
    op.execute("ALTER TABLE jobs ADD COLUMN made_up varchar")
"""


@pytest.fixture
def next_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A revision after the newest, which only the test that asks for it has."""
    before = head()
    revision = f"{int(before) + 1:04}"
    folder = tmp_path / "versions"
    shutil.copytree(schema.VERSIONS, folder)
    (folder / f"{revision}_made_up.py").write_text(NEXT.format(revision=revision, before=before))
    monkeypatch.setattr(schema, "VERSIONS", folder)
    return revision


def test_no_revision_makes_others_wait_for_long(filled: Database, next_revision: str) -> None:
    revisions = [line.split()[0] for line in schema.history(filled)]
    assert (revisions[0], revisions[-1]) == (FIRST, next_revision)
    for revision in revisions[1:]:
        with audited() as audit:
            upgrade(filled, revision)
        assert audit.findings == [], f"revision {revision}: see docs/migrations.md"


def test_a_revision_that_was_broken_off_between_two_steps_begins_anew(filled: Database, next_revision: str) -> None:
    with filled.begin() as connection:
        connection.execute(text("UPDATE attempts SET attempt = 1000 WHERE job_id LIKE '%01'"))
    with pytest.raises(IntegrityError, match="ck_attempts_made_up"):
        upgrade(filled)
    with filled.begin() as connection:
        assert schema.current(connection) != next_revision
        connection.execute(text("UPDATE attempts SET attempt = 1"))
    upgrade(filled)
    with filled.begin() as connection:
        assert schema.current(connection) == next_revision
    index, constraint, column = sorted(find_drift(filled))
    assert index == "- CREATE INDEX ix_jobs_made_up ON jobs USING btree (completed_at, id)"
    assert constraint == "- attempts ck_attempts_made_up: CHECK ((attempt < 1000))", "validated"
    assert column == "- jobs.made_up character varying"


@pytest.mark.usefixtures("next_revision")
def test_a_lock_that_is_not_free_is_tried_for_again(filled: Database) -> None:
    waits = 0

    def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        nonlocal waits
        waits += "DROP CONSTRAINT IF EXISTS" in statement
        if waits > 1:
            may_end.set()  # it gave up once

    may_end, is_held = threading.Event(), threading.Event()

    def read_for_long() -> None:
        with filled.begin() as connection:
            # On a busy machine the revision comes late, and Postgres would end this connection meanwhile.
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            connection.execute(text("SELECT count(*) FROM attempts"))
            is_held.set()
            may_end.wait(WAIT_S)

    reader = threading.Thread(target=read_for_long)
    event.listen(Engine, "before_cursor_execute", count)
    try:
        reader.start()
        assert is_held.wait(WAIT_S)
        upgrade(filled)
    finally:
        event.remove(Engine, "before_cursor_execute", count)
        may_end.set()
        reader.join(WAIT_S)
    assert waits > 1


def test_what_makes_others_wait_is_found_and_what_does_not_passes(filled: Database) -> None:
    short = "SET LOCAL lock_timeout = '1s'"
    for statements, found in (
        ([short, "CREATE INDEX ON jobs (created_at)"], "reads"),
        ([short, "ALTER TABLE jobs ALTER attempt TYPE bigint"], "reads"),
        ([short, "ALTER TABLE jobs ALTER webhook SET NOT NULL"], "null values"),
        ([short, "ALTER TABLE jobs ADD CONSTRAINT c CHECK (attempt >= 0)"], "reads"),
        ([short, "LOCK TABLE jobs IN SHARE MODE", "SELECT count(*) FROM job_events"], "reads"),
        ([short, "UPDATE jobs SET priority = 2"], "changed"),
        (["ALTER TABLE jobs ADD COLUMN fine int NOT NULL DEFAULT 0"], "waits"),
        ([short, "ALTER TABLE jobs ADD COLUMN fine int NOT NULL DEFAULT 0"], ""),
        ([short, "ALTER TABLE jobs ADD CONSTRAINT c CHECK (attempt >= 0) NOT VALID"], ""),
    ):
        with audited() as audit, filled.begin() as connection:
            for statement in statements:
                try:
                    connection.execute(text(statement))
                except Exception as error:  # noqa: BLE001 - such a revision would be noticed by itself
                    audit.findings.append(str(error))
            connection.rollback()
        assert len(audit.findings) == bool(found), (statements, audit.findings)
        assert not found or found in audit.findings[0]


def test_an_index_is_built_while_a_process_leads(
    filled: Database, next_revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_election, "CHECK_S", 0.0)
    with ThreadPoolExecutor(1) as pool, lead(filled, 1) as leadership:
        assert leadership is not None
        for _ in range(10):  # so often that the driver prepares the statement
            leadership.check()
        built, until = pool.submit(upgrade, filled), time.monotonic() + WAIT_S
        while not built.done() and time.monotonic() < until:
            leadership.check()
            time.sleep(0.05)
        is_built = built.done()
    assert is_built
    with filled.begin() as connection:
        assert schema.current(connection) == next_revision

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Column, Index, Integer, MetaData, make_url, text
from sqlalchemy.exc import DBAPIError

from headrace.migrations.__main__ import main
from headrace.migrations.drift import find_drift
from headrace.migrations.schema import head, upgrade
from headrace.store.db.database import Database, check_schema
from headrace.store.errors import Unavailable
from headrace.store.ids import new_id
from headrace.store.schema.tables import REVISION, metadata
from headrace.store.settings import Settings
from tests.processes import WAIT_S
from tests.roles import ROLE_PASSWORD


@pytest.fixture
def empty_url(db: Database, settings: Settings) -> Iterator[str]:
    """A database of this test's own, with nothing in it."""
    name = new_id("test")
    url = make_url(settings.database_url)
    with db.autocommit() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield url.set(database=name).render_as_string(hide_password=False)
    with db.autocommit() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    database = Database(empty_url, application_name="tests")
    yield database
    database.close()


@pytest.fixture
def migrated(empty: Database) -> Database:
    upgrade(empty)
    return empty


def copy_of_tables() -> MetaData:
    copy = MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.sorted_tables:
        table.to_metadata(copy)
    return copy


def test_the_code_names_the_newest_revision() -> None:
    assert head() == REVISION


def test_an_empty_database_becomes_what_the_tables_say(empty: Database) -> None:
    with pytest.raises(Unavailable, match="`headrace migrate`"):
        check_schema(empty)
    assert upgrade(empty) is None
    check_schema(empty)
    assert find_drift(empty) == []
    assert upgrade(empty) == REVISION, "nothing is left to do"


def test_the_audit_log_is_append_only_in_every_session(migrated: Database) -> None:
    """On a database that no test has touched: elsewhere tests switch the trigger off and on."""
    with migrated.begin() as connection:
        connection.execute(text("INSERT INTO audit_log (actor, action, resource, at) VALUES ('a', 'b', 'c', now())"))
    for role in ("origin", "replica"):
        for deed in ("DELETE FROM audit_log", "UPDATE audit_log SET actor = 'x'", "TRUNCATE audit_log"):
            assert "append-only" in refused(migrated, f"SET LOCAL session_replication_role = {role}", deed)


def refused(db: Database, *statements: str) -> str:
    """Run the statements in one transaction; return why it was refused, empty if it was not."""
    try:
        with db.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
    except DBAPIError as error:
        return str(error)
    return ""


def test_tables_whose_rows_change_all_the_time_are_vacuumed_early(migrated: Database) -> None:
    early = "'autovacuum_vacuum_scale_factor=0.01' = ANY (reloptions)"
    with migrated.autocommit() as connection:
        tables = set(connection.execute(text(f"SELECT relname FROM pg_class WHERE {early}")).scalars())
    assert tables >= {"jobs", "attempts", "webhook_deliveries"}


def test_migrators_that_start_together_migrate_once(empty_url: str) -> None:
    barrier = Barrier(4)

    def migrate(n: int) -> str | None:
        db = Database(empty_url, pool_size=2, application_name=f"migrator-{n}")
        barrier.wait(WAIT_S)
        try:
            return upgrade(db)
        finally:
            db.close()

    with ThreadPoolExecutor(4) as pool:
        before = list(pool.map(migrate, range(4), timeout=250))
    assert (before.count(None), before.count(REVISION)) == (1, 3)


def test_a_failing_migration_leaves_nothing(empty: Database) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE jobs (id int)"))  # in the way of the first revision
    with pytest.raises(Exception, match="jobs"):
        upgrade(empty)
    with empty.autocommit() as connection:
        assert connection.execute(text("SELECT to_regclass('tenants')")).scalar_one() is None
        connection.execute(text("DROP TABLE jobs"))
    assert upgrade(empty) is None, "the migrators' lock is free again"


@pytest.mark.parametrize("revision", ["0064", "9999"], ids=["before", "later"])
def test_a_schema_of_an_unknown_revision_is_refused_and_not_changed(
    empty_url: str,
    empty: Database,
    revision: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with empty.begin() as connection:
        connection.execute(
            text("CREATE TABLE alembic_version AS SELECT CAST(:found AS text) AS version_num"), {"found": revision}
        )
    monkeypatch.setenv("DATABASE_URL", empty_url)
    for arguments in ([], ["roles"]):
        assert main(arguments) == 1
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert revision in said.err
    with empty.autocommit() as connection:
        tables = connection.execute(text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"))
        assert tables.scalars().all() == ["alembic_version"]
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [revision]


class TestDrift:
    def test_a_new_column_is_found(self, migrated: Database) -> None:
        tables = copy_of_tables()
        tables.tables["jobs"].append_column(Column("forgotten", Integer))
        assert find_drift(migrated, tables) == ["+ jobs.forgotten integer"]

    def test_a_lost_column_is_found(self, migrated: Database) -> None:
        with migrated.begin() as connection:
            connection.execute(text("ALTER TABLE jobs ADD COLUMN forgotten text NOT NULL DEFAULT 'x'"))
        assert find_drift(migrated) == ["- jobs.forgotten text not null default 'x'::text"]

    def test_another_type_default_or_nullability_is_found(self, migrated: Database) -> None:
        with migrated.begin() as connection:
            connection.execute(text("ALTER TABLE jobs ALTER attempt TYPE bigint, ALTER attempt DROP NOT NULL"))
            connection.execute(text("ALTER TABLE jobs ALTER epoch SET DEFAULT 1"))
        assert find_drift(migrated) == [
            "- jobs.attempt bigint default 0",
            "+ jobs.attempt integer not null default 0",
            "+ jobs.epoch bigint not null default 0",
            "- jobs.epoch bigint not null default 1",
        ]

    def test_another_identity_is_found(self, migrated: Database) -> None:
        with migrated.begin() as connection:
            connection.execute(text("ALTER TABLE limit_overrides ALTER id DROP IDENTITY"))
        assert find_drift(migrated) == [
            "- limit_overrides.id bigint not null",
            "+ limit_overrides.id bigint not null identity",
        ]

    def test_another_check_is_found(self, migrated: Database) -> None:
        with migrated.begin() as connection:
            connection.execute(text("ALTER TABLE jobs DROP CONSTRAINT ck_jobs_running_has_lease"))
        (line,) = find_drift(migrated)
        assert line.startswith("+ jobs ck_jobs_running_has_lease: CHECK")

    def test_another_partial_index_is_found(self, migrated: Database) -> None:
        with migrated.begin() as connection:
            connection.execute(text("DROP INDEX ix_jobs_lease"))
            connection.execute(text("CREATE INDEX ix_jobs_lease ON jobs (lease_expires_at)"))
        lost, found = sorted(find_drift(migrated))
        assert lost.startswith("+ CREATE INDEX ix_jobs_lease ON jobs")
        assert "WHERE" in lost
        assert found == "- CREATE INDEX ix_jobs_lease ON jobs USING btree (lease_expires_at)"

    def test_a_new_index_is_found(self, migrated: Database) -> None:
        tables = copy_of_tables()
        Index("ix_tenants_name_id", tables.tables["tenants"].c.name, tables.tables["tenants"].c.id)
        assert find_drift(migrated, tables) == ["+ CREATE INDEX ix_tenants_name_id ON tenants USING btree (name, id)"]

    def test_looking_leaves_nothing_behind(self, migrated: Database) -> None:
        find_drift(migrated)
        with migrated.autocommit() as connection:
            schemas = connection.execute(text("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'headrace%'"))
            assert schemas.scalars().all() == []
            assert connection.execute(text("SHOW search_path")).scalar_one() == '"$user", public'


class TestCommand:
    def test_it_migrates_checks_and_tells_the_history(
        self, empty_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", empty_url)
        assert main(["history"]) == 0
        assert "0100  missing" in capsys.readouterr().out
        assert main(["check"]) == 1
        assert "+ jobs.id character varying not null" in capsys.readouterr().out
        assert main([]) == 0
        assert capsys.readouterr().out == f"migrated from empty to {REVISION}\n"
        assert main(["upgrade"]) == 0
        assert capsys.readouterr().out == f"at {REVISION} already\n"
        assert main(["check"]) == 0
        assert main(["history"]) == 0
        assert "0100  applied" in capsys.readouterr().out

    def test_roles_without_a_password_are_named(
        self, empty_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", empty_url)
        monkeypatch.setenv("HEADRACE_API_DATABASE_PASSWORD", ROLE_PASSWORD)
        assert main(["roles"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert (said[1].split()[0], said[2].split(" may")[0]) == ("headrace_api", "headrace_worker, headrace_operator")
        assert "HEADRACE_WORKER_DATABASE_PASSWORD, HEADRACE_OPERATOR_DATABASE_PASSWORD" in said[2]

    def test_an_absent_server_is_one_line_and_exit_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://app@127.0.0.1:1/x")
        command = [sys.executable, "-m", "headrace.migrations"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert "Connection refused" in result.stderr

    def test_no_address_is_said(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.delenv("DATABASE_URL", raising=False)
        assert main([]) == 1
        assert "DATABASE_URL" in capsys.readouterr().err

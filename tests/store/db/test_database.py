import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import make_url, text

from headrace.store.db import database as module
from headrace.store.db.database import IDLE_TIMEOUT_S, Database, check_schema, is_migrated, parse_url
from headrace.store.errors import InvalidRequest, SettingsError, StatementTimeout, Unavailable
from headrace.store.json_text import dump_json
from headrace.store.schema.tables import REVISION
from headrace.store.settings import Settings


@pytest.fixture
def small(settings: Settings) -> Iterator[Database]:
    """A pool of one connection, so that a test knows which connection it gets."""
    database = Database(settings.database_url, pool_size=1, application_name="small")
    yield database
    database.close()


def backend(db: Database) -> int:
    with db.autocommit() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def terminate(db: Database, pid: int) -> None:
    """End a server process and wait until it is gone."""
    with db.autocommit() as connection:
        assert connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}).scalar_one()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_the_usual_spellings_of_an_address_are_read(scheme: str) -> None:
    url = parse_url(f"{scheme}://app:s%40fe@db.example:5433/headrace?sslmode=require")
    assert url.drivername == "postgresql+psycopg"
    assert (url.host, url.port, url.database, url.password) == ("db.example", 5433, "headrace", "s@fe")
    assert url.query == {"sslmode": "require"}


def test_several_servers_are_tried_until_one_may_be_written(settings: Settings) -> None:
    """As libpq has it: ``host1:port,host2:port`` with ``target_session_attrs``; the first of these is away."""
    url = parse_url("postgresql://app:s%40fe@a.example:5433,b.example/headrace?target_session_attrs=read-write")
    assert (url.password, url.query["host"]) == ("s@fe", ("a.example:5433", "b.example"))
    assert parse_url("postgresql://app:a,b/c@one.example/headrace").host == "one.example"
    here = make_url(settings.database_url)
    if "host" not in here.query:
        pytest.skip("needs the Postgres of the wheels, which listens on a socket")
    several = here.set(query={"host": ["/nowhere", str(here.query["host"])], "target_session_attrs": "read-write"})
    db = Database(several.render_as_string(hide_password=False), pool_size=1, application_name="tests")
    try:
        db.ping()
    finally:
        db.close()


@pytest.mark.parametrize("url", ["", "db.example", "mysql://db/x", "postgresql+psycopg2://db/x", "postgresql://h:x/d"])
def test_another_address_is_refused_by_the_name_of_its_setting(url: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        Database(url, application_name="tests")


def rename(db: Database, tenant: str, name: str, *, per_mille: int = 1) -> None:
    with db.begin() as connection:
        connection.execute(text("UPDATE tenants SET name = :name WHERE id = :id"), {"name": name, "id": tenant})
        assert 1000 // per_mille


def test_a_block_commits_and_a_failed_one_leaves_nothing(db: Database, tenant: str) -> None:
    rename(db, tenant, "kept")
    with pytest.raises(ZeroDivisionError):
        rename(db, tenant, "lost", per_mille=0)
    with db.autocommit() as connection:
        assert connection.execute(text("SELECT name FROM tenants")).scalars().all() == ["kept"]


def test_a_transaction_and_an_autocommit_can_follow_each_other_on_one_connection(small: Database) -> None:
    with small.autocommit() as connection:
        first = connection.execute(text("SELECT pg_backend_pid(), pg_current_xact_id_if_assigned()")).one()
    with small.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE gone (n int) ON COMMIT DROP"))
        connection.execute(text("INSERT INTO gone VALUES (1)"))  # there only if both are one transaction
    assert backend(small) == first[0]


def test_the_session_is_named_and_bounded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # The limit of the product, which a fixture of all tests sets higher.
    monkeypatch.setattr("headrace.store.db.database.IDLE_TIMEOUT_S", IDLE_TIMEOUT_S)
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "application_name", "timezone")
    with (
        closing(Database(settings.database_url, pool_size=1, application_name="small")) as small,
        small.autocommit() as connection,
    ):
        shown = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]
    assert shown == ["30s", "10s", "3s", "small", "UTC"]


def test_the_server_ends_a_transaction_of_a_tenant_whose_client_is_silent(
    settings: Settings, db: Database, tenant: str
) -> None:
    silent = Database(settings.database_url, pool_size=1, application_name="silent", idle_timeout_s=0.3)
    lock = text("SELECT FROM tenants WHERE id = :id FOR UPDATE")

    def hold_a_row() -> None:
        with silent.begin(tenant_id=tenant) as connection:
            connection.execute(lock, {"id": tenant})
            # The row is free again only because the server has ended the silent transaction.
            with db.begin() as other:
                other.execute(lock, {"id": tenant})
            connection.execute(lock, {"id": tenant})

    with closing(silent), pytest.raises(Unavailable, match="idle-in-transaction"):
        hold_a_row()


def test_an_absent_server_is_told_in_one_line_without_the_password() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused for as long as the test runs
        db = Database(f"postgresql://app:sesame@127.0.0.1:{taken.getsockname()[1]}/x", application_name="tests")
        with pytest.raises(Unavailable) as refused:
            db.ping()
    assert refused.value.code == "database_unavailable"
    assert "Connection refused" in refused.value.message
    assert "\n" not in refused.value.message
    assert "sesame" not in refused.value.message


def test_an_idle_connection_that_the_server_closed_is_replaced_unnoticed(db: Database, small: Database) -> None:
    before = backend(small)
    terminate(db, before)
    assert backend(small) != before


def die_in_a_transaction(db: Database, killer: Database) -> None:
    with db.begin() as connection:
        terminate(killer, connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        connection.execute(text("SELECT 1"))


def test_a_connection_lost_in_a_transaction_is_told_and_the_next_one_works(db: Database, small: Database) -> None:
    with pytest.raises(Unavailable) as lost:
        die_in_a_transaction(small, db)
    assert "\n" not in lost.value.message
    small.ping()


def lock_briefly(db: Database, tenant: str) -> None:
    with db.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '50ms'"))
        connection.execute(text("SELECT FROM tenants WHERE id = :id FOR UPDATE"), {"id": tenant})


@pytest.fixture
def grown_table(db: Database) -> Iterator[str]:
    with db.autocommit() as connection:
        connection.execute(text("CREATE TABLE outdated (n int)"))
    yield "outdated"
    with db.autocommit() as connection:
        connection.execute(text("DROP TABLE outdated"))


@pytest.mark.parametrize("mode", ["autocommit", "begin"])
def test_one_statement_fails_when_a_migration_changed_its_columns_and_none_after_it(
    settings: Settings, db: Database, grown_table: str, tenant: str, mode: str
) -> None:
    read = text(f"SELECT * FROM {grown_table}")
    reader = Database(settings.database_url, pool_size=2, application_name="test")
    hold = getattr(reader, mode)
    try:
        for _ in range(7):  # often enough that the driver prepares it, on both connections
            with hold() as one, hold() as other:
                one.execute(read)
                other.execute(read)
        with db.autocommit() as connection:
            connection.execute(text(f"ALTER TABLE {grown_table} ADD COLUMN m int"))
        with pytest.raises(Unavailable, match="migrated"), hold(tenant_id=tenant) as one:
            one.execute(read)
        with hold() as one, hold() as other:
            assert [*one.execute(read).keys()] == [*other.execute(read).keys()] == ["n", "m"]
    finally:
        reader.close()


def test_a_lock_that_cannot_be_had_is_unavailable(db: Database, tenant: str) -> None:
    with db.begin() as holder:
        holder.execute(text("SELECT FROM tenants WHERE id = :id FOR UPDATE"), {"id": tenant})
        with pytest.raises(StatementTimeout):
            lock_briefly(db, tenant)


def test_a_connection_that_ends_without_a_word_is_unavailable(db: Database, tenant: str) -> None:
    def read(*, is_cut: bool) -> None:
        with db.begin(tenant_id=tenant) as connection:
            if is_cut:
                with socket.socket(fileno=os.dup(connection.connection.fileno())) as wire:
                    wire.shutdown(socket.SHUT_RDWR)
            connection.execute(text("SELECT 1"))

    with pytest.raises(Unavailable):
        read(is_cut=True)
    read(is_cut=False)


def test_a_pool_that_stays_busy_is_unavailable(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL_TIMEOUT_S", 0.05)
    db = Database(settings.database_url, pool_size=1, application_name="tests")
    told: list[Unavailable] = []

    def second() -> None:
        with pytest.raises(Unavailable) as error:
            db.ping()
        told.append(error.value)

    with db.begin():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(10)
    db.close()
    assert [error.code for error in told] == ["database_unavailable"]


@pytest.mark.parametrize("value", ["a\0secret", {"text": "a\0secret"}])
def test_a_value_that_cannot_be_stored_is_the_callers_fault_and_not_quoted(db: Database, value: object) -> None:
    statement = "SELECT CAST(:value AS text)" if isinstance(value, str) else "SELECT CAST(:value AS jsonb) -> 'text'"
    parameter = (lambda: value) if isinstance(value, str) else (lambda: dump_json(value))
    with pytest.raises(InvalidRequest) as refused, db.begin() as connection:
        connection.execute(text(statement), {"value": parameter()})
    assert "secret" not in refused.value.message
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_a_text_that_is_not_unicode_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        dump_json({"text": "half a pair: \ud800"})


def test_json_comes_back_as_it_went_in(db: Database) -> None:
    value = {"text": "Grüße, 世界 🎡", "seed": 2**63 - 1, "top_p": 0.1, "none": None, "list": [True, {}]}
    with db.autocommit() as connection:
        assert connection.execute(text("SELECT CAST(:v AS jsonb)"), {"v": dump_json(value)}).scalar_one() == value


def test_parameters_stay_out_of_error_messages(db: Database) -> None:
    with pytest.raises(Exception, match="no_such_function") as error, db.begin() as connection:
        connection.execute(text("SELECT no_such_function(:prompt)"), {"prompt": "a secret prompt"})
    assert "secret" not in str(error.value)


@pytest.fixture
def version_table(db: Database) -> Iterator[None]:
    """An alembic_version of this test's own, in a transaction-free schema that hides the real one."""
    with db.autocommit() as connection:
        before = connection.execute(text("SELECT to_regclass('alembic_version')")).scalar()
        if before is not None:
            connection.execute(text("ALTER TABLE alembic_version RENAME TO alembic_version_kept"))
    yield
    with db.autocommit() as connection:
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
        if before is not None:
            connection.execute(text("ALTER TABLE alembic_version_kept RENAME TO alembic_version"))


def set_revision(db: Database, revision: str) -> None:
    with db.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})


@pytest.mark.usefixtures("version_table")
def test_an_empty_schema_says_what_to_run(db: Database) -> None:
    with pytest.raises(Unavailable, match=r"empty.*`headrace migrate`"):
        check_schema(db)
    assert not is_migrated(db)


@pytest.mark.usefixtures("version_table")
def test_an_older_schema_is_refused(db: Database) -> None:
    set_revision(db, "0000")
    with pytest.raises(Unavailable, match=f"0000.*{REVISION}"):
        check_schema(db)


@pytest.mark.usefixtures("version_table")
@pytest.mark.parametrize("revision", [REVISION, "9999"])
def test_the_schema_of_this_version_or_a_later_one_is_good(db: Database, revision: str) -> None:
    set_revision(db, revision)
    check_schema(db)
    assert is_migrated(db)

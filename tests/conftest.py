"""Fixtures for all tests: real services, settings for them, an empty database, an empty Redis.

One PostgreSQL and one Valkey run for the whole session (with ``-n``, for each of its processes), with the durability
settings of production: from wheels, or with ``--containers`` as the images that ``deploy/compose.yaml`` names.
DATABASE_URL and REDIS_URL, if given, are used instead; since every test empties them, the database's name must contain
"test".
"""

import atexit
import gc
import importlib
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest
import redis
from hypothesis.internal.conjecture import providers
from sqlalchemy import Connection, Engine, MetaData, create_engine, make_url

from headrace.assembly import FEATURES
from headrace.cli.local.postgres import LocalPostgres
from headrace.cli.local.valkey import LocalValkey
from headrace.migrations.roles import let_in
from headrace.migrations.schema import upgrade
from headrace.store.db import database, seal_part
from headrace.store.db.database import Database, parse_url
from headrace.store.db.roles import ROLES
from headrace.store.db.seal_part import open_seal
from headrace.store.redis.connection import connect
from headrace.store.schema.all_tables import metadata
from headrace.store.settings import Settings, load_settings
from tests.folders import reachable_folder
from tests.kept_connections import kept_connections
from tests.processes import StartProcess, none_left, processes
from tests.roles import ROLE_PASSWORD
from tests.sealing import TURNED

# What every table or secret must hold to, whichever feature brings it: these read rows of several together.
_OF_SEVERAL = {
    "features/encryption/test_encryption_verbs.py": {"batches", "flows", "responses", "webhooks"},
    "store/test_isolation.py": {"batches", "webhooks"},
}
_INSTALLED = {name.partition(".")[0] for name in FEATURES}
collect_ignore = [name for name, features in _OF_SEVERAL.items() if not features <= _INSTALLED]

# What a feature brings, by names: a parametrised case is a feature's if the first word of an argument is one of these.
_BROUGHT = {
    "approvals": "flows",
    "pipelines": "flows",
    "prompts": "templates",
    "rollout": "rollouts",
    "tools": "flows",
    "/v1/messages": "anthropic",
    "predict": "predict",
    "tabular/predictions": "predict",
    "recommend": "recommend",
    "recommendations": "recommend",
    "transcribe": "transcribe",
    "audio/transcriptions": "transcribe",
    "webhooks": "webhooks",
}


@dataclass(frozen=True)
class Services:
    """Addresses of the two servers of this session."""

    database_url: str
    redis_url: str


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--containers", action="store_true", help="take Postgres and Valkey from Docker, not from wheels")
    parser.addoption("--s3", action="store_true", help="keep files on an S3 server, moto's: installed on first use")
    parser.addoption(
        "--full", action="store_true", help="as many faults and jobs as the promises name, not the few of CI"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Few, fixed examples per property; with --full Hypothesis's own number of random ones.
    hypothesis.settings.register_profile("ci", max_examples=40, derandomize=True, deadline=None)
    if not config.option.full:
        hypothesis.settings.load_profile("ci")
        # It also draws numbers and texts from the source of every module of ours that is loaded. So the examples would
        # depend on the tests that ran before in this process, and on each constant of the product.
        providers._get_local_constants = lambda: providers._local_constants
    given = load_settings()
    if getattr(config.option, "numprocesses", None) and (given.database_url or given.redis_url):
        raise pytest.UsageError("DATABASE_URL, REDIS_URL: processes that empty one database need each their own: -n 0")


# Tests that start stacks or commands, or compile kernels, may exceed the limit in pyproject.toml; all tests with --full
# much more.
_LONG = ("cli", "e2e", "models", "reliability")
_LONG_S, _FULL_S = 900, 3600

# Folders with tests that mostly wait, the longest first. Compute-bound files run between them, to use the cores evenly
# and to end at the same time.
_WAITING = ("e2e", "cli", "reliability", "workers")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what is collected away from the garbage collector: it lives to the end, and is millions of objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)


def _features_of(item: pytest.Item) -> set[str]:
    """Return the features that a test uses, by its marker ``uses`` and its arguments."""
    used = {name for mark in item.iter_markers("uses") for name in mark.args}
    spec = getattr(item, "callspec", None)
    words = [value.split(" ")[0] for value in (spec.params.values() if spec else ()) if isinstance(value, str)]
    return used | {_BROUGHT[word] for word in words if word in _BROUGHT}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    of_none = [item for item in items if _features_of(item) - _INSTALLED]
    config.hook.pytest_deselected(items=of_none)
    items[:] = [item for item in items if item not in of_none]
    if not config.option.full and not any("::" in given for given in config.args):
        later = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    folders = {item.path: item.path.relative_to(Path(__file__).parent).parts[0] for item in items}
    for item in items:
        if config.option.full:
            item.add_marker(pytest.mark.timeout(_FULL_S), append=False)
        elif folders[item.path] in _LONG:
            item.add_marker(pytest.mark.timeout(_LONG_S))
    waiting = sorted(
        (path for path in folders if folders[path] in _WAITING), key=lambda path: _WAITING.index(folders[path])
    )
    computing = [path for path in folders if folders[path] not in _WAITING]
    # Waiting tests take longer, so they are spaced more closely: both kinds should end at the same time.
    places = {path: 0.7 * number / len(waiting) for number, path in enumerate(waiting)}
    places |= {path: number / len(computing) for number, path in enumerate(computing)}
    items.sort(key=lambda item: places[item.path])


@pytest.fixture(autouse=True)
def no_process_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kill processes that a test leaves running, and fail this test instead of the next ones.

    Services of the session and of a module are started before it.
    """
    if request.config.getoption("--s3"):
        request.getfixturevalue("s3_server")
    with none_left():
        yield


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[StartProcess]:
    """Start child processes that end with the test: ``start_process(argv, env)``."""
    with processes(tmp_path) as start:
        yield start


@pytest.fixture(autouse=True, scope="session")
def _own_runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide stacks of tests from the user's own CLI, which looks for a running stack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """A folder for a server of the test's own, which the test may stop."""
    with reachable_folder() as folder:
        yield folder


_server_log = pytest.StashKey[Path]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failed test that a session of PostgreSQL crashed: the server then drops all others too."""
    report = yield
    log = item.config.stash.get(_server_log, None)
    if report.failed and log is not None and log.exists():
        lines = log.read_text(errors="replace").splitlines()
        crashes = [line for line in lines if "terminated by signal" in line or "PANIC" in line]
        if crashes:
            report.sections.append(("crashes of PostgreSQL in this run", "\n".join(crashes[-5:])))
    return report


@pytest.fixture(autouse=True, scope="session")
def _patient_transactions() -> Iterator[None]:
    """Let this process stand still in a transaction, as on a busy machine. Other processes keep their limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "IDLE_TIMEOUT_S", 60.0)
        yield


@pytest.fixture(scope="session")
def services(request: pytest.FixtureRequest) -> Iterator[Services]:
    if request.config.getoption("--containers"):
        # Imported on demand: it looks for Docker.
        with importlib.import_module("tests.containers").running_containers() as (database_url, redis_url):
            yield Services(database_url, redis_url)
        return
    given = load_settings()
    if given.database_url and "test" not in (make_url(given.database_url).database or ""):
        pytest.exit("DATABASE_URL: every test empties this database; its name must contain 'test'", returncode=4)
    with reachable_folder() as folder:
        postgres = LocalPostgres(folder / "pg", folder / "postgres.log")
        valkey = LocalValkey(folder / "kv", folder / "valkey.log")
        request.config.stash[_server_log] = folder / "postgres.log"
        try:
            if not given.database_url:
                postgres.start()
            if not given.redis_url:
                valkey.start()
            yield Services(given.database_url or postgres.url, given.redis_url or valkey.url)
        finally:
            valkey.stop()
            postgres.stop()


@pytest.fixture(scope="session")
def schema(services: Services) -> Iterator[Engine]:
    """The database with every table, as an engine for emptying them."""
    db = Database(services.database_url, pool_size=2, application_name="tests")
    upgrade(db)
    let_in(db, dict.fromkeys(ROLES, ROLE_PASSWORD))
    db.close()
    engine = create_engine(parse_url(services.database_url), connect_args={"options": "-c lock_timeout=20s"})
    with kept_connections(services.database_url):
        yield engine
    engine.dispose()


def _emptying(connection: Connection) -> str:
    """A function of a session that deletes all rows, also of the append-only audit log. Its plans are kept."""
    # DELETE, not TRUNCATE: with real fsync it is ten times faster on small tables. Only tables with rows: most of the
    # thousands of tests use few tables.
    known = metadata.tables
    others = MetaData()
    parts = set(connection.exec_driver_sql("SELECT relname FROM pg_class WHERE relispartition").scalars())
    others.reflect(connection, only=lambda name, _: name not in {*known, *parts, "alembic_version"})
    of_no_feature = [table.name for table in reversed(others.sorted_tables) if table.name not in known]
    tables = [*of_no_feature, *(table.name for table in reversed(metadata.sorted_tables) if table.name != "audit_log")]
    deletes = "\n".join(f"IF EXISTS (SELECT FROM {table}) THEN DELETE FROM {table}; END IF;" for table in tables)
    # The trigger stays as the migrations made it: a test checks that.
    return f"""CREATE OR REPLACE FUNCTION pg_temp.empty_tables() RETURNS void LANGUAGE plpgsql AS $$
        DECLARE how text := CASE WHEN EXISTS (
            SELECT FROM pg_trigger WHERE tgname = 'headrace_audit_append_only' AND tgenabled = 'A'
        ) THEN 'ENABLE ALWAYS' ELSE 'ENABLE' END;
        BEGIN
        IF EXISTS (SELECT FROM audit_log) THEN
            ALTER TABLE audit_log DISABLE TRIGGER headrace_audit_append_only;
            DELETE FROM audit_log;
            EXECUTE 'ALTER TABLE audit_log ' || how || ' TRIGGER headrace_audit_append_only';
        END IF;
        {deletes} END $$"""


def empty_tables(connection: Connection) -> None:
    """Delete all rows."""
    if connection.exec_driver_sql("SELECT to_regproc('pg_temp.empty_tables')").scalar() is None:
        connection.exec_driver_sql(_emptying(connection))
    connection.exec_driver_sql("SELECT pg_temp.empty_tables()")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a bucket on an S3 server of this session's."""
    # Imported on demand: it installs the server.
    with importlib.import_module("tests.store.s3").running_s3() as url:
        yield url


@pytest.fixture
def s3_url(s3_server: str) -> str:
    """A unique prefix in the bucket."""
    return f"{s3_server}/{uuid4().hex}"


@pytest.fixture(scope="session")
def _settings_of_all(services: Services) -> Settings:
    """What the settings of all tests share. Reading the environment takes longer than emptying the database."""
    return Settings(
        database_url=services.database_url,
        redis_url=services.redis_url,
        lease_s=3,
        sweep_s=0.2,
        reannounce_s=1,
        drain_s=2,
        stream_ping_s=1,
    )


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, services: Services, schema: Engine, tmp_path: Path, _settings_of_all: Settings
) -> Settings:
    """Settings for one test: an empty database, an empty Redis, and times short enough to wait for."""
    with schema.begin() as connection:
        empty_tables(connection)
    with redis.from_url(services.redis_url) as client:
        client.flushdb()
    files_url = request.getfixturevalue("s3_url") if request.config.getoption("--s3") else ""
    return _settings_of_all.model_copy(update={"home": tmp_path, "files_url": files_url})


@pytest.fixture
def turned_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings with encryption keys make the seal of ``tests.sealing`` in this process, instead of encryption."""
    monkeypatch.setattr(seal_part, "parts", lambda *_: [TURNED])


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    """The store's way into the emptied database."""
    with closing(Database(settings.database_url, application_name="tests", seal=open_seal(settings))) as opened:
        yield opened


@pytest.fixture
def fresh_connections(schema: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that counts sessions: each closed connection is closed at the server too. Use with usefixtures."""
    monkeypatch.setattr(database, "create_engine", create_engine)


@pytest.fixture
def redis_client(settings: Settings) -> Iterator[redis.Redis]:
    """A client of the flushed Redis."""
    client = connect(settings.redis_url)
    yield client
    client.close()

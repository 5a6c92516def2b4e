"""The connection pool of Postgres, transactions, row-level security, and the translation of driver errors.

The tenants of a transaction are set in the same round trip as its BEGIN, or as the only statement. The setting lasts
for one transaction, so a connection in the pool has no tenant.

    autocommit:  [ set tenant ▸ statement ]   [ set tenant ▸ statement ]        one message to the server each
    begin:       [ BEGIN ▸ set tenant ]  first statement  second …  COMMIT

There is no statement here apart from the schema check; the statements stand in the modules of their subjects.
"""

import re
import select
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import orjson
import psycopg
from psycopg.errors import FeatureNotSupported, LockNotAvailable, QueryCanceled, error_from_result
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.types.json import set_json_loads
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DisconnectionError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
)
from sqlalchemy.exc import InvalidRequestError as NoLiveConnection
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from headrace.store.errors import InvalidRequest, SettingsError, StatementTimeout, Unavailable
from headrace.store.schema.tables import REVISION
from headrace.store.seal import PLAIN, Seal

CONNECT_TIMEOUT_S = 5
POOL_TIMEOUT_S = 10.0

STATEMENT_TIMEOUT_S = 30.0
LOCK_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 3.0
"""The server ends the session of a client that is silent in a transaction for so long (SIGSTOP, a cut cable). Otherwise
its row locks would keep workers from renewing leases."""

# Row-level security: the policies of the tables compare ``tenant_id`` with this setting, ids separated by commas.
_SET = "SELECT set_config('headrace.tenant', %s, true)"
# Before it, the limits of ``time_limits``, if there are any: for one transaction too.
_LIMITS: ContextVar[str] = ContextVar("limits", default="")
_OPTION = "headrace_first"

_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)


class Database:
    """A pool of connections to one Postgres. Connects at the first use, and again after the server was away.

    ``seal`` seals the columns with contents. A statement fails if it waits ``lock_timeout_s`` for a lock or takes
    ``statement_timeout_s``. A transaction fails if the client is silent in it for ``idle_timeout_s``, by default
    ``IDLE_TIMEOUT_S``.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 8,
        application_name: str,
        seal: Seal = PLAIN,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        idle_timeout_s: float | None = None,
        statement_timeout_s: float = STATEMENT_TIMEOUT_S,
    ) -> None:
        self.seal = seal
        idle_timeout_s = IDLE_TIMEOUT_S if idle_timeout_s is None else idle_timeout_s
        self._engine = create_engine(
            parse_url(url),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            pool_use_lifo=True,
            # Parameters are prompts and answers; they stay out of messages and so out of logs.
            hide_parameters=True,
            connect_args=_connect_args(application_name, lock_timeout_s, idle_timeout_s, statement_timeout_s),
        )
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "checkout", _refuse_dead)
        event.listen(self._engine, "handle_error", _replace_outdated)
        _install_settings(self._engine)

    @contextmanager
    def begin(self, *, tenant_id: str | None = None, tenant_ids: Collection[str] = ()) -> Iterator[Connection]:
        """Run a transaction: committed at the end of the block, rolled back if it raises.

        ``tenant_id`` or ``tenant_ids``: the tenants that the transaction may see. Without one, the API's role sees no
        rows of tenants. Setting them costs no round trip.

        Raises Unavailable if Postgres cannot be reached or gave up waiting (StatementTimeout: on a statement or for a
        lock), InvalidRequest if it refuses a value.
        """
        with _translated_errors(), self._connect() as connection, connection.begin():
            yield _with_tenants(connection, tenant_id, tenant_ids)

    @contextmanager
    def autocommit(self, *, tenant_id: str | None = None, tenant_ids: Collection[str] = ()) -> Iterator[Connection]:
        """Hold a connection on which each statement commits by itself: one round trip instead of three.

        For single statements. Tenants and errors: see ``begin``.
        """
        with _translated_errors(), self._connect() as connection:
            speaking = connection.execution_options(isolation_level="AUTOCOMMIT")
            yield _with_tenants(speaking, tenant_id, tenant_ids)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Hold a connection; the block begins and ends its transactions, as migrations and leaders do.

        Errors: see ``begin``.
        """
        with _translated_errors(), self._connect() as connection:
            yield connection

    def _connect(self) -> Connection:
        """Return a connection of the pool. Raises Unavailable if the server closes each one as it is opened."""
        try:
            return self._engine.connect()
        except NoLiveConnection as error:
            message = "Postgres is not available: it closes new connections"
            raise Unavailable(message, code="database_unavailable") from error

    def ping(self) -> None:
        """Make one round trip; raise Unavailable if there is no answer."""
        with self.autocommit() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close the idle connections; those in use close when they come back."""
        self._engine.dispose()


@contextmanager
def time_limits(*, lock_s: float | None, statement_s: float | None) -> Iterator[None]:
    """Bound the statements of this thread in the block: by the wait for a lock, and by their time. None: as before."""
    limits = {"lock_timeout": lock_s, "statement_timeout": statement_s}
    given = (f"set_config('{name}', '{round(s * 1000)}ms', true)" for name, s in limits.items() if s is not None)
    before = _LIMITS.set(", ".join(given))
    try:
        yield
    finally:
        _LIMITS.reset(before)


def parse_url(url: str) -> URL:
    """Read ``postgres://``, ``postgresql://`` or ``postgresql+psycopg://``; raise SettingsError for anything else.

    Several servers, as libpq has them (``host1:5432,host2:5432``), become SQLAlchemy's ``host=host1:5432&host=…``.
    """
    try:
        parsed = make_url(_with_hosts_apart(url))
    except (ArgumentError, ValueError):
        # From None: the parser's message may quote the password.
        raise SettingsError("DATABASE_URL: not an address like postgresql://user@host/database") from None
    if parsed.drivername not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise SettingsError(f"DATABASE_URL: needs postgresql://, not {parsed.drivername}://")
    return parsed.set(drivername="postgresql+psycopg")


def _with_hosts_apart(url: str) -> str:
    # A password may have any letter but @, as SQLAlchemy has it.
    found = re.fullmatch(r"(\w+(?:\+\w+)?://(?:[^@]*@)?)([^@/?]*,[^@/?]*)(/[^@?]*)?(?:\?([^@]*))?", url)
    if found is None:
        return url
    start, hosts, path, query = found.groups()
    each = urlencode([("host", host) for host in hosts.split(",")])
    return f"{start}{path or ''}?{f'{query}&' if query else ''}{each}"


def check_schema(db: Database) -> None:
    """Raise Unavailable unless the schema is at this code's revision or a later one.

    A later revision is fine, because every migration works with the release that runs while it is applied.
    """
    with db.begin() as connection:
        exists = connection.execute(text("SELECT to_regclass('alembic_version') IS NOT NULL")).scalar_one()
        found = connection.execute(text("SELECT max(version_num) FROM alembic_version")).scalar() if exists else None
    if found is None or found < REVISION:
        state = f"at {found}, this version needs {REVISION}" if found else "empty"
        raise Unavailable(f"the database schema is {state}: run `headrace migrate`", code="database_unavailable")


def is_migrated(db: Database) -> bool:
    """Return False if ``check_schema`` would refuse; raise Unavailable if Postgres itself is away."""
    db.ping()
    try:
        check_schema(db)
    except Unavailable:
        return False
    return True


def _connect_args(
    application_name: str, lock_timeout_s: float, idle_timeout_s: float, statement_timeout_s: float
) -> dict[str, object]:
    session = {
        "statement_timeout": f"{round(statement_timeout_s * 1000)}ms",
        "lock_timeout": f"{round(lock_timeout_s * 1000)}ms",
        "idle_in_transaction_session_timeout": f"{round(idle_timeout_s * 1000)}ms",
        "timezone": "UTC",
    }
    return {
        "application_name": application_name,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "options": " ".join(f"-c {name}={value}" for name, value in session.items()),
        # Detects a peer that vanished without a FIN within half a minute.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }


def _prepare(connection: Any, _record: object) -> None:
    set_json_loads(orjson.loads, connection)


def _refuse_dead(connection: Any, _record: object, _proxy: object) -> None:
    """Refuse an idle connection that the server has closed. No round trip: a closed socket is readable."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise DisconnectionError("the server closed this idle connection")


def _is_outdated(error: object) -> bool:
    """True for "cached plan must not change result type", whatever the server's language."""
    return isinstance(error, FeatureNotSupported) and error.diag.source_function == "RevalidateCachedQuery"


def _replace_outdated(context: ExceptionContext) -> None:
    """Replace all connections when one has a prepared statement whose columns a migration has changed.

    The session would refuse the statement for as long as it lives, and the others of the pool have prepared it too.
    """
    if _is_outdated(context.original_exception):
        context.is_disconnect = True


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except NotSupportedError as error:
        if not _is_outdated(error.orig):
            raise
        raise Unavailable("the schema was migrated meanwhile: try again", code="database_unavailable") from error
    except DataError:
        # From None: the driver's message quotes the refused value.
        raise InvalidRequest("a value cannot be stored: it contains U+0000 or is out of range") from None
    except _AWAY as error:
        if isinstance(getattr(error, "orig", None), QueryCanceled | LockNotAvailable):
            raise StatementTimeout("Postgres gave up on a statement that took too long") from error
        raise Unavailable(f"Postgres is not available: {_reason(error)}", code="database_unavailable") from error


def _reason(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


@dataclass(slots=True)
class _Setting:
    """A statement that is sent before other statements. ``is_due``: before the next one."""

    statement: str
    parameters: tuple[str, ...]
    each_statement: bool
    is_due: bool = True


def _with_tenants(connection: Connection, tenant_id: str | None, tenant_ids: Collection[str] = ()) -> Connection:
    """Set the tenants of a connection that was just taken from the pool. Without tenants nothing is set."""
    names = [*tenant_ids] if tenant_id is None else [tenant_id, *tenant_ids]
    limits = _LIMITS.get()
    if not names and not limits:
        return connection
    if any("," in name for name in names):
        raise ValueError("a tenant's id has no comma: it would be two")
    if not limits:
        return with_setting(connection, _SET, ",".join(names))
    tenants = (", set_config('headrace.tenant', %s, true)", (",".join(names),)) if names else ("", ())
    return with_setting(connection, f"SELECT {limits}{tenants[0]}", *tenants[1])


def with_setting(connection: Connection, setting: str, *parameters: str) -> Connection:
    """Send ``setting``, which sets something for one transaction, in one message with its BEGIN.

    With autocommit it is sent before each statement, in the same message. A connection has one such setting: a new one
    replaces it.
    """
    each = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    return connection.execution_options(**{_OPTION: _Setting(setting, parameters, each_statement=each)})


def _install_settings(engine: Engine) -> None:
    """Install the event handlers that send the settings of ``with_setting``."""
    event.listen(engine, "do_execute", _execute)
    event.listen(engine, "do_executemany", _execute_many)


def _execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    return _preceded(cursor, context, lambda: cursor.execute(statement, parameters))


def _execute_many(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    return _preceded(cursor, context, lambda: cursor.executemany(statement, parameters))


def _preceded(cursor: Any, context: Any, execute: Callable[[], object]) -> bool:
    """Execute after the setting, if it is due; otherwise return False: nothing was done."""
    first: _Setting | None = context.execution_options.get(_OPTION)
    if first is None or not first.is_due:
        return False
    first.is_due = first.each_statement
    connection = cursor.connection
    if first.each_statement:
        # A pipeline is one message, and with autocommit one transaction.
        with connection.pipeline(), connection.cursor() as before:
            before.execute(first.statement, first.parameters)
            execute()
        return True
    # No pipeline: the driver ends one with a Flush, which stops the server's clock of an idle transaction.
    _begin_with(connection, psycopg.ClientCursor(connection).mogrify(first.statement, first.parameters))
    return False


def _begin_with(connection: Any, statement: str) -> None:
    """Send ``statement`` in one message with the BEGIN that the driver would send before the first statement."""
    begin = "BEGIN; " if connection.info.transaction_status == TransactionStatus.IDLE else ""
    result = connection.pgconn.exec_(f"{begin}{statement}".encode())
    if result.status not in {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}:
        error = error_from_result(result)
        # A server that goes away without a word leaves no SQLSTATE, by which the driver chooses the class.
        raise error if error.sqlstate else psycopg.OperationalError(str(error))

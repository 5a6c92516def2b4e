"""Row-level security: sets the tenants of a transaction in the same round trip as its first statement.

The setting ``headrace.tenant`` has the ids of the tenants, separated by commas; the policies of the tables compare
``tenant_id`` with it. It lasts for one transaction, so a connection in the pool has no tenant.

    autocommit:  [ set tenant ▸ statement ]   [ set tenant ▸ statement ]        one message to the server each
    begin:       [ BEGIN ▸ set tenant ▸ first statement ]  second …  COMMIT
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event

_OPTION = "headrace_first"
_SET = "SELECT set_config('headrace.tenant', %s, true)"


@dataclass(slots=True)
class _Setting:
    """A statement that is sent before other statements. ``is_due``: before the next one."""

    statement: str
    parameters: tuple[str, ...]
    each_statement: bool
    is_due: bool = True


def with_tenants(connection: Connection, tenant_id: str | None, tenant_ids: Collection[str] = ()) -> Connection:
    """Set the tenants of a connection that was just taken from the pool. Without tenants nothing is set."""
    names = [*tenant_ids] if tenant_id is None else [tenant_id, *tenant_ids]
    if not names:
        return connection
    if any("," in name for name in names):
        raise ValueError("a tenant's id has no comma: it would be two")
    return with_setting(connection, _SET, ",".join(names))


def with_setting(connection: Connection, setting: str, *parameters: str) -> Connection:
    """Send ``setting``, which sets something for one transaction, before the first statement, in the same message.

    With autocommit it is sent before each statement. A connection has one such setting: a new one replaces it.
    """
    each = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    return connection.execution_options(**{_OPTION: _Setting(setting, parameters, each_statement=each)})


def install(engine: Engine) -> None:
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
    # A pipeline is one message, and with autocommit one transaction.
    with cursor.connection.pipeline(), cursor.connection.cursor() as before:
        before.execute(first.statement, first.parameters)
        execute()
    return True

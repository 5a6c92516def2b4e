"""Whose rows a statement may touch: the tenant that a transaction is for, told to Postgres in the same round trip.

Postgres holds the tenant, or several with commas between them, in the setting ``headrace.tenant``, which the policies
of its tables compare with. It is set for one transaction and gone with it, so a connection that goes back to the pool
keeps nobody's name.

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
class _First:
    """What Postgres is told before other statements. ``is_due``: before the next one."""

    statement: str
    parameters: tuple[str, ...]
    each_statement: bool
    is_due: bool = True


def speak_for(connection: Connection, tenant_id: str | None, tenant_ids: Collection[str] = ()) -> Connection:
    """Let the statements of a connection that was just taken from the pool be these tenants'; without any: nobody's."""
    names = [*tenant_ids] if tenant_id is None else [tenant_id, *tenant_ids]
    if not names:
        return connection
    if any("," in name for name in names):
        raise ValueError("a tenant's id has no comma: it would be two")
    return after(connection, _SET, ",".join(names))


def after(connection: Connection, setting: str, *parameters: str) -> Connection:
    """Let a statement that sets something for one transaction go before those of the connection, in the same message.

    Outside of a transaction it goes before each of them. There is one such statement: another takes its place.
    """
    each = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    return connection.execution_options(**{_OPTION: _First(setting, parameters, each_statement=each)})


def install(engine: Engine) -> None:
    """Let the connections of an engine heed ``speak_for``."""
    event.listen(engine, "do_execute", _execute)
    event.listen(engine, "do_executemany", _execute_many)


def _execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    return _preceded(cursor, context, lambda: cursor.execute(statement, parameters))


def _execute_many(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    return _preceded(cursor, context, lambda: cursor.executemany(statement, parameters))


def _preceded(cursor: Any, context: Any, execute: Callable[[], object]) -> bool:
    """Execute after what must be said first, if that is due now; else return False: nothing was done."""
    first: _First | None = context.execution_options.get(_OPTION)
    if first is None or not first.is_due:
        return False
    first.is_due = first.each_statement
    # A pipeline is one message, and outside of a transaction it is one by itself.
    with cursor.connection.pipeline(), cursor.connection.cursor() as before:
        before.execute(first.statement, first.parameters)
        execute()
    return True

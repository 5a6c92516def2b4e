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

_OPTION = "headrace_tenant"
_SET = "SELECT set_config('headrace.tenant', %s, true)"


@dataclass(slots=True)
class _Tenant:
    """Whose statements these are, as Postgres is told. ``is_due``: the next one must say so."""

    names: str
    each_statement: bool
    is_due: bool = True


def speak_for(connection: Connection, tenant_id: str | None, tenant_ids: Collection[str] = ()) -> Connection:
    """Let the statements of a connection that was just taken from the pool be these tenants'; without any: nobody's."""
    names = [*tenant_ids] if tenant_id is None else [tenant_id, *tenant_ids]
    if not names:
        return connection
    if any("," in name for name in names):
        raise ValueError("a tenant's id has no comma: it would be two")
    each = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    return connection.execution_options(**{_OPTION: _Tenant(",".join(names), each_statement=each)})


def install(engine: Engine) -> None:
    """Let the connections of an engine heed ``speak_for``."""
    event.listen(engine, "do_execute", _execute)
    event.listen(engine, "do_executemany", _execute_many)


def _execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    return _preceded(cursor, context, lambda: cursor.execute(statement, parameters))


def _execute_many(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    return _preceded(cursor, context, lambda: cursor.executemany(statement, parameters))


def _preceded(cursor: Any, context: Any, execute: Callable[[], object]) -> bool:
    """Execute after the tenant's name, if that must be said now; else return False: nothing was done."""
    tenant = _due(context)
    if tenant is None:
        return False
    # A pipeline is one message, and outside of a transaction it is one by itself.
    with cursor.connection.pipeline(), cursor.connection.cursor() as first:
        first.execute(_SET, (tenant.names,))
        execute()
    return True


def _due(context: Any) -> _Tenant | None:
    """Return the tenant if this statement must be preceded by its name."""
    tenant: _Tenant | None = context.execution_options.get(_OPTION)
    if tenant is None or not tenant.is_due:
        return None
    tenant.is_due = tenant.each_statement
    return tenant

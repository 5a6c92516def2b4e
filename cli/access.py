"""``headrace keys`` and ``headrace tenants``: who may come in. They need the database, not the API.

This is the operator's way: whoever can reach the database may make tenants, and keys of any of them. A tenant's own
admins have ``/v1/organization/api_keys``.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from cli.admin import database, located
from cli.render import out
from store import key_changes, tenants
from store.db import Database
from store.errors import HeadraceError, NotFound
from store.key_changes import DEFAULT_OVERLAP_S, ApiKey, NewKey
from store.key_notices import publish_change
from store.keys import DEFAULT_TENANT, SCOPES, create_tenant, find_tenant, find_tenant_of_key
from store.redis import connect
from store.settings import load_settings

keys = typer.Typer(no_args_is_help=True, help="API keys: what each may do, which models it may use, until when.")
tenants_app = typer.Typer(no_args_is_help=True, help="Tenants: who has keys and jobs of their own.")

_KEYS, _TENANTS = "headrace keys", "headrace tenants"
_MOST_DAYS = 3650

TenantOption = Annotated[str, typer.Option(help="Whose key it is.")]
KeyArgument = Annotated[str, typer.Argument(help="The key's id (key_…), or the key itself.")]
TenantArgument = Annotated[str, typer.Argument(help="The tenant's name.")]
Days = Annotated[float | None, typer.Option(help="Expires after this many days.", min=0.001, max=_MOST_DAYS)]


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What to remember it by.")],
    tenant: TenantOption = DEFAULT_TENANT,
    scope: Annotated[list[str] | None, typer.Option(help="Repeatable; default: all.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Repeatable: a model that it may use; default: every model.")
    ] = None,
    days: Days = None,
) -> None:
    """Make a key and print it, the only time it is shown."""
    wanted = NewKey(name, frozenset(scope or SCOPES), frozenset(model) if model else None, _seconds(days))
    with _database() as db:
        issued = key_changes.create(db, _tenant(db, tenant), wanted, actor=_KEYS, giver=None)
    sys.stdout.write(f"{issued.plaintext}\n")


@keys.command("list")
def list_keys(tenant: TenantOption = DEFAULT_TENANT) -> None:
    """List a tenant's keys, newest first, with those that have ended."""
    with _database() as db:
        found = key_changes.list_keys(db, find_tenant(db, tenant), limit=None)
    out.print(_keys_table(found))


@keys.command("rotate")
def rotate(
    key: KeyArgument,
    overlap_hours: Annotated[
        float, typer.Option(help="How long the old key still works; 0: no longer.", min=0, max=720)
    ] = DEFAULT_OVERLAP_S / 3600,
    days: Days = None,
) -> None:
    """Print a new key with the same rights; the old one still works for a day, or as long as you say."""
    key_id = _key_id(key)
    until = key_changes.Kept.KEPT if days is None else _seconds(days)
    with _database() as db:
        _, issued = key_changes.rotate(
            db,
            find_tenant_of_key(db, key_id),
            key_id,
            overlap_s=round(overlap_hours * 3600),
            until=until,
            actor=_KEYS,
            giver=None,
        )
    _tell(key_id)
    sys.stdout.write(f"{issued.plaintext}\n")


@keys.command("revoke")
def revoke(key: KeyArgument) -> None:
    """End a key: within ten seconds in every process, at once in those that hear of it by Redis."""
    key_id = _key_id(key)
    with _database() as db:
        key_changes.revoke(db, find_tenant_of_key(db, key_id), key_id, actor=_KEYS, giver=None)
    _tell(key_id)
    sys.stdout.write(f"{key_id} revoked\n")


@tenants_app.command("create")
def create_tenant_(name: TenantArgument) -> None:
    """Make a tenant; its first key is made by `headrace keys create --tenant NAME`."""
    with _database() as db:
        tenant_id = create_tenant(db, name, actor=_TENANTS)
    sys.stdout.write(f"{tenant_id}\n")


@tenants_app.command("list")
def list_tenants() -> None:
    """List every tenant."""
    with _database() as db:
        found = tenants.list_tenants(db)
    table = _table("tenant", "id", "created", "keys in force", "disabled")
    for tenant in found:
        table.add_row(tenant.name, tenant.id, _day(tenant.created_at), str(tenant.num_keys), _day(tenant.disabled_at))
    out.print(table)


@tenants_app.command("rename")
def rename(name: TenantArgument, new_name: Annotated[str, typer.Argument(help="Its new name.")]) -> None:
    """Give a tenant another name; its id, keys and jobs stay."""
    with _database() as db:
        tenants.rename(db, name, new_name, actor=_TENANTS)
    sys.stdout.write(f"{name} is {new_name} now\n")


@tenants_app.command("disable")
def disable(name: TenantArgument) -> None:
    """Refuse a tenant's keys until it is enabled. Jobs that were accepted go on; the lines of its batches wait."""
    _set_disabled(name, disabled=True)


@tenants_app.command("enable")
def enable(name: TenantArgument) -> None:
    """Let a tenant's keys work again."""
    _set_disabled(name, disabled=False)


def _set_disabled(name: str, *, disabled: bool) -> None:
    with _database() as db:
        tenant_id = tenants.set_disabled(db, name, disabled=disabled, actor=_TENANTS)
    _tell(tenant_id)
    sys.stdout.write(f"{name} {'disabled' if disabled else 'enabled'}\n")


@contextmanager
def _database() -> Iterator[Database]:
    db = database()
    try:
        yield db
    finally:
        db.close()


def _tell(changed_id: str) -> None:
    """Let API processes look again at once; without Redis they do within ten seconds."""
    url = located(load_settings()).get("REDIS_URL")
    if url:
        client = connect(url, timeout_s=1.0, retries=0)
        with suppress(HeadraceError):
            publish_change(client, changed_id)
        client.close()


def _tenant(db: Database, name: str) -> str:
    """The tenant's id; the default one is made if need be, any other must exist."""
    try:
        return find_tenant(db, name)
    except NotFound:
        if name != DEFAULT_TENANT:
            raise
        return create_tenant(db, name, actor=_KEYS)


def _key_id(key: str) -> str:
    return f"key_{key.split('_')[1]}" if key.startswith("hr_") else key


def _seconds(days: float | None) -> float | None:
    return None if days is None else days * 86_400


def _keys_table(found: list[ApiKey]) -> Table:
    table = _table("key", "name", "scopes", "models", "last used", "ends", "state")
    now = datetime.now(UTC)
    for key in found:
        scopes = "all" if key.rights.scopes == SCOPES else ", ".join(sorted(key.rights.scopes))
        models = "every" if key.rights.models is None else ", ".join(sorted(key.rights.models))
        state = "in force" if key.is_in_force(now) else "expired" if key.revoked_at is None else "revoked"
        replaced = f", replaced by {key.replaced_by}" if key.replaced_by else ""
        ends = _day(key.rights.expires_at)
        table.add_row(key.id, key.name, scopes, models, _day(key.last_used_at), ends, f"{state}{replaced}")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _day(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M}"

"""``headrace keys`` and ``headrace tenants``: administration of keys and tenants in the database, without the API.

These commands are for the operator: access to the database is enough. Admins of a tenant use
``/v1/organization/api_keys``.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from headrace.cli.groups import noun
from headrace.cli.operator.admin import database, located
from headrace.cli.render import JsonOption, show, table
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, NotFound
from headrace.store.redis.connection import connect
from headrace.store.redis.key_notices import publish_change
from headrace.store.settings import load_settings
from headrace.store.tenants import api_key_admin, tenants
from headrace.store.tenants.api_key_admin import DEFAULT_OVERLAP_S, ApiKey, IssuedKey, NewKey
from headrace.store.tenants.api_keys import (
    DEFAULT_TENANT,
    OPERATION_SCOPES,
    SCOPES,
    create_tenant,
    find_tenant,
    find_tenant_of_key,
)

keys = noun("API keys: what each may do, which models it may use, until when.")
tenants_app = noun("Tenants: who has keys and jobs of their own.")

_KEYS, _TENANTS = "headrace keys", "headrace tenants"
_MOST_DAYS = 3650

TenantOption = Annotated[str, typer.Option(help="Whose key it is.")]
KeyArgument = Annotated[str, typer.Argument(help="The key's id (key_…), or the key itself.")]
TenantArgument = Annotated[str, typer.Argument(help="The tenant's name.")]
Days = Annotated[float | None, typer.Option(help="Expires after this many days.", min=0.001, max=_MOST_DAYS)]


@keys.command("list")
def list_keys(tenant: TenantOption = DEFAULT_TENANT, as_json: JsonOption = False) -> None:
    """List a tenant's keys, newest first, with those that have ended."""
    with _database() as db:
        found = api_key_admin.list_keys(db, find_tenant(db, tenant), limit=None)
    show([_key_fields(key) for key in found], _keys_table(found), as_json=as_json)


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What to remember it by.")],
    tenant: TenantOption = DEFAULT_TENANT,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable; default: all; those of the operator only for the tenant `default`."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Repeatable: a model that it may use; default: every model.")
    ] = None,
    days: Days = None,
    as_json: JsonOption = False,
) -> None:
    """Create a key and print it; it is shown only once."""
    scopes = SCOPES if tenant == DEFAULT_TENANT else SCOPES - OPERATION_SCOPES
    wanted = NewKey(name, frozenset(scope or scopes), frozenset(model) if model else None, _seconds(days))
    with _database() as db:
        issued = api_key_admin.create(db, _tenant(db, tenant), wanted, actor=_KEYS, grantor=None)
    _show_issued(issued, as_json=as_json)


@keys.command("rotate")
def rotate(
    key: KeyArgument,
    overlap_hours: Annotated[
        float, typer.Option(help="How long the old key still works; 0: no longer.", min=0, max=720)
    ] = DEFAULT_OVERLAP_S / 3600,
    days: Days = None,
    as_json: JsonOption = False,
) -> None:
    """Print a new key with the same rights; the old one still works for a day, or for --overlap."""
    key_id = _key_id(key)
    until = api_key_admin.Unchanged.UNCHANGED if days is None else _seconds(days)
    with _database() as db:
        _, issued = api_key_admin.rotate(
            db,
            find_tenant_of_key(db, key_id),
            key_id,
            overlap_s=round(overlap_hours * 3600),
            until=until,
            actor=_KEYS,
            grantor=None,
        )
    _tell(key_id)
    _show_issued(issued, as_json=as_json)


@keys.command("revoke")
def revoke(key: KeyArgument, as_json: JsonOption = False) -> None:
    """End a key: at once in all processes that are connected to Redis, else within ten seconds."""
    key_id = _key_id(key)
    with _database() as db:
        api_key_admin.revoke(db, find_tenant_of_key(db, key_id), key_id, actor=_KEYS, grantor=None)
    _tell(key_id)
    show({"id": key_id, "revoked": True}, f"{key_id} revoked", as_json=as_json)


@tenants_app.command("list")
def list_tenants(as_json: JsonOption = False) -> None:
    """List every tenant."""
    with _database() as db:
        found = tenants.list_tenants(db)
    rows = ((one.name, one.id, _day(one.created_at), str(one.num_keys), _day(one.disabled_at)) for one in found)
    data = [
        {
            "id": one.id,
            "name": one.name,
            "created_at": _unix(one.created_at),
            "keys_in_force": one.num_keys,
            "disabled_at": _unix(one.disabled_at),
        }
        for one in found
    ]
    told = table("tenant", "id", "created", "keys in force", "disabled", rows=rows)
    show(data, told, as_json=as_json)


@tenants_app.command("create")
def create_tenant_(name: TenantArgument, as_json: JsonOption = False) -> None:
    """Create a tenant; create its first key with `headrace keys create --tenant NAME`."""
    with _database() as db:
        tenant_id = create_tenant(db, name, actor=_TENANTS)
    show({"id": tenant_id, "name": name}, tenant_id, as_json=as_json)


@tenants_app.command("rename")
def rename(
    name: TenantArgument,
    new_name: Annotated[str, typer.Argument(help="Its new name.")],
    as_json: JsonOption = False,
) -> None:
    """Rename a tenant; its id, keys and jobs stay."""
    with _database() as db:
        tenant_id = tenants.rename(db, name, new_name, actor=_TENANTS)
    show({"id": tenant_id, "name": new_name}, f"{name} is {new_name} now", as_json=as_json)


@tenants_app.command("disable")
def disable(name: TenantArgument, as_json: JsonOption = False) -> None:
    """Refuse a tenant's keys until it is enabled. Accepted jobs continue; lines of its batches wait."""
    _set_disabled(name, disabled=True, as_json=as_json)


@tenants_app.command("enable")
def enable(name: TenantArgument, as_json: JsonOption = False) -> None:
    """Enable a tenant: its keys work again."""
    _set_disabled(name, disabled=False, as_json=as_json)


def _set_disabled(name: str, *, disabled: bool, as_json: bool) -> None:
    with _database() as db:
        tenant_id = tenants.set_disabled(db, name, disabled=disabled, actor=_TENANTS)
    _tell(tenant_id)
    data = {"id": tenant_id, "name": name, "disabled": disabled}
    show(data, f"{name} {'disabled' if disabled else 'enabled'}", as_json=as_json)


@contextmanager
def _database() -> Iterator[Database]:
    db = database()
    try:
        yield db
    finally:
        db.close()


def _tell(changed_id: str) -> None:
    """Make API processes refresh their caches at once; without Redis they do it within ten seconds."""
    url = located(load_settings()).get("REDIS_URL")
    if url:
        client = connect(url, timeout_s=1.0, retries=0)
        with suppress(HeadraceError):
            publish_change(client, changed_id)
        client.close()


def _tenant(db: Database, name: str) -> str:
    """The tenant's id; the default tenant is created if necessary, others must exist."""
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


def _show_issued(issued: IssuedKey, *, as_json: bool) -> None:
    show({**_key_fields(issued.key), "value": issued.plaintext}, issued.plaintext, as_json=as_json)


def _key_fields(key: ApiKey) -> dict[str, object]:
    """Return the key in the form of `/v1/organization/api_keys`."""
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.rights.scopes),
        "models": None if key.rights.models is None else sorted(key.rights.models),
        "created_at": _unix(key.created_at),
        "expires_at": _unix(key.rights.expires_at),
        "last_used_at": _unix(key.last_used_at),
        "revoked_at": _unix(key.revoked_at),
        "replaced_by": key.replaced_by,
    }


def _keys_table(found: list[ApiKey]) -> Table:
    now = datetime.now(UTC)
    columns = ("key", "name", "scopes", "models", "last used", "ends", "state")
    return table(*columns, rows=(_key_row(key, now) for key in found))


def _key_row(key: ApiKey, now: datetime) -> tuple[str, ...]:
    scopes = "all" if key.rights.scopes == SCOPES else ", ".join(sorted(key.rights.scopes))
    models = "every" if key.rights.models is None else ", ".join(sorted(key.rights.models))
    state = "in force" if key.is_in_force(now) else "expired" if key.revoked_at is None else "revoked"
    replaced = f", replaced by {key.replaced_by}" if key.replaced_by else ""
    return key.id, key.name, scopes, models, _day(key.last_used_at), _day(key.rights.expires_at), f"{state}{replaced}"


def _unix(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def _day(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M}"

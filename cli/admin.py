"""The verbs that need the database rather than the API: keys, models and prices; and the processes themselves.

DATABASE_URL and REDIS_URL say where; without them, the stack that runs in HEADRACE_HOME.
"""

import os
import sys
from decimal import Decimal, InvalidOperation
from typing import Annotated, NoReturn

import typer

from cli.local.home import Home
from store.db import Database, check_schema
from store.errors import HeadraceError, InvalidRequest, NotFound, SettingsError
from store.keys import DEFAULT_TENANT, SCOPES, create_key, create_tenant, find_tenant, revoke_key
from store.registry import resolve
from store.settings import Settings, child_environment, load_settings, open_vault
from store.usage import Price, set_price

keys = typer.Typer(no_args_is_help=True, help="API keys.")

TenantOption = Annotated[str, typer.Option(help="Whose key it is.")]


def located(settings: Settings) -> dict[str, str]:
    """The environment variables that say where the services are, as far as they are known."""
    record = Home(settings.home).running()
    database_url = settings.database_url or (record.database_url if record else "")
    redis_url = settings.redis_url or (record.redis_url if record else "")
    found = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    return {name: value for name, value in found.items() if value}


def run_module(module: str, *arguments: str) -> NoReturn:
    """Become ``python -m module``, with the same process id, so that signals and exit codes are its own."""
    env = child_environment(located(load_settings()))
    argv = [sys.executable, "-m", module, *arguments]
    os.execve(sys.executable, argv, env)  # noqa: S606 - no shell, and a list of our own making


def register(
    name: Annotated[str, typer.Argument(help="What jobs will call it.")],
    source: Annotated[str, typer.Argument(help="A folder in the Hugging Face layout, with safetensors.")],
    dtype: Annotated[
        str, typer.Option(help="auto, bfloat16, float32, float16, or int8 if it is close enough.")
    ] = "auto",
) -> None:
    """Register a model's files as its next version."""
    run_module("models.catalog", "register", name, source, "--dtype", dtype)


def measure(source: Annotated[str, typer.Argument(help="A folder in the Hugging Face layout.")]) -> None:
    """Measure how far bfloat16 and int8 are from float32 for a model, which decides what auto means for it."""
    run_module("models.catalog", "measure", source)


def price(
    model: Annotated[str, typer.Argument(help="A model, or one version or alias of it: NAME@3.")],
    input_: Annotated[str, typer.Option("--input", help="What a million tokens of prompts cost, such as 0.15.")],
    output: Annotated[str, typer.Option(help="What a million tokens of answers cost.")],
    cached_input: Annotated[
        str | None, typer.Option(help="What a million cached tokens of prompts cost; by default as the others.")
    ] = None,
) -> None:
    """Set what jobs of a model version cost from now on; those that have ended keep their cost."""
    db = database()
    try:
        version = resolve(db, model)
        amounts = [_amount(given) for given in (input_, cached_input or input_, output)]
        set_price(db, version.model, version.version, Price(*amounts), actor="headrace price")
    finally:
        db.close()
    sys.stdout.write(f"{version.model}@{version.version} is priced\n")


def _amount(given: str) -> Decimal:
    try:
        return Decimal(given)
    except InvalidOperation:
        raise InvalidRequest(f"a price is a number such as 0.15, not {given!r}", param="price") from None


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What to remember it by.")],
    tenant: TenantOption = DEFAULT_TENANT,
    scope: Annotated[list[str] | None, typer.Option(help="Repeatable; default: all.")] = None,
    days: Annotated[float | None, typer.Option(help="Expires after this many days.", min=0.001)] = None,
) -> None:
    """Make a key and print it, the only time it is shown."""
    db = database()
    try:
        expires_s = days * 86_400 if days else None
        tenant_id = _tenant(db, tenant)
        sys.stdout.write(
            create_key(db, tenant_id, name, scope or SCOPES, expires_s=expires_s, actor="headrace keys") + "\n"
        )
    finally:
        db.close()


@keys.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id (key_…), or the key itself.")],
    tenant: TenantOption = DEFAULT_TENANT,
) -> None:
    """End a key at once."""
    key_id = f"key_{key.split('_')[1]}" if key.startswith("hr_") else key
    db = database()
    try:
        revoke_key(db, find_tenant(db, tenant), key_id, "headrace keys")
    finally:
        db.close()
    sys.stdout.write(f"{key_id} revoked\n")


def database() -> Database:
    """The configured database, or that of the stack that runs; raise SettingsError if there is neither."""
    url = located(load_settings()).get("DATABASE_URL")
    if not url:
        raise SettingsError("DATABASE_URL is not set, and no stack is running in HEADRACE_HOME")
    db = Database(url, pool_size=1, application_name="headrace keys", vault=open_vault(load_settings()))
    try:
        check_schema(db)
    except HeadraceError:
        db.close()
        raise
    return db


def _tenant(db: Database, name: str) -> str:
    """The tenant's id; the default one is made if need be, any other must exist."""
    try:
        return find_tenant(db, name)
    except NotFound:
        if name != DEFAULT_TENANT:
            raise
        return create_tenant(db, name)

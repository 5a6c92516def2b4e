"""Database access for the operator's commands, prices, and starting of processes.

The services are those of DATABASE_URL and REDIS_URL, else of the running stack (``cli.local.home``).
"""

import runpy
import sys
from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from typing import Annotated, NoReturn

import typer

from headrace.cli.local.home import find_home
from headrace.cli.render import JsonOption, say_stack, show
from headrace.store.db.database import Database, check_schema
from headrace.store.db.roles import API, OPERATOR, WORKER, url_of
from headrace.store.db.seal_part import check_seal, open_seal
from headrace.store.errors import HeadraceError, InvalidRequest, SettingsError
from headrace.store.registry import versions
from headrace.store.registry.models import resolve
from headrace.store.settings import Settings, adopt_environment, load_settings
from headrace.store.tenants.usage import Price, set_price


def located(settings: Settings, role: str | None = OPERATOR) -> dict[str, str]:
    """Return the environment variables with the known addresses of the services.

    Without given addresses they are those of the running stack. In an embedded database the user is ``role``; None: the
    owner.
    """
    if settings.database_url or settings.redis_url:
        given = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
        return {name: value for name, value in given.items() if value}
    home = find_home(settings)
    record = home.running()
    if record is None:
        return {}
    database_url = url_of(record.database_url, role) if record.has_roles and role else record.database_url
    return {"DATABASE_URL": database_url, "REDIS_URL": record.redis_url, "HEADRACE_HOME": str(home.path)}


_ROLES = {
    "headrace.producer_api": API,
    "headrace.workers": WORKER,
    "headrace.workers.dispatcher": WORKER,
    "headrace.features.hosts": WORKER,
    "headrace.migrations": None,
}


def run_module(module: str, *arguments: str) -> NoReturn:
    """Replace this process by ``python -m module``, so that signals and exit codes are those of the module."""
    settings = load_settings()
    where = located(settings, _ROLES.get(module, OPERATOR))
    say_stack(where.get("HEADRACE_HOME"))
    adopt_environment(where)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def price(
    model: Annotated[str, typer.Argument(help="A model, or one version or alias of it: NAME@3.")],
    input_: Annotated[str, typer.Option("--input", help="What a million tokens of prompts cost, such as 0.15.")],
    output: Annotated[str, typer.Option(help="What a million tokens of answers cost.")],
    cached_input: Annotated[
        str | None, typer.Option(help="What a million cached tokens of prompts cost; by default as the others.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Set the price of a model version. The cost of ended jobs does not change."""
    db = database()
    try:
        version = resolve(db, model)
        priced = Price(*(_amount(given) for given in (input_, cached_input or input_, output)))
        set_price(db, version.model, version.version, priced, actor="headrace price")
    finally:
        db.close()
    name = f"{version.model}@{version.version}"
    data = {"model": version.model, "version": version.version, **asdict(priced)}
    show(data, f"{name} is priced", as_json=as_json)


def delete_version(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A retired version: NAME@3.")],
    as_json: JsonOption = False,
) -> None:
    """Delete a retired version that no job is kept of. Its number is not given again."""
    model, _, number = version.rpartition("@")
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise InvalidRequest(f"name a version by its number, such as smollm2@1, not {version!r}", param="version")
    db = database()
    try:
        versions.delete_version(db, model, int(number), actor="headrace models delete")
    finally:
        db.close()
    show({"model": model, "version": int(number), "deleted": True}, f"{version} is deleted", as_json=as_json)


def _amount(given: str) -> Decimal:
    try:
        return Decimal(given)
    except InvalidOperation:
        raise InvalidRequest(f"a price is a number such as 0.15, not {given!r}", param="price") from None


def database(*, keys_checked: bool = True) -> Database:
    """The configured database, or that of the running stack. Raises SettingsError if there is neither, or if the
    encryption keys differ from the recorded ones, unless ``keys_checked`` is False.
    """
    settings = load_settings()
    where = located(settings)
    url = where.get("DATABASE_URL")
    if not url:
        raise SettingsError("DATABASE_URL is not set, and no stack of yours is running: `headrace up` starts one")
    say_stack(where.get("HEADRACE_HOME"))
    db = Database(url, pool_size=1, application_name="headrace cli", seal=open_seal(settings))
    try:
        check_schema(db)
        if keys_checked:
            check_seal(db)
    except HeadraceError:
        db.close()
        raise
    return db

"""The verbs that need the database rather than the API: models and prices; and the processes themselves.

DATABASE_URL and REDIS_URL say where; without them, the stack that runs in HEADRACE_HOME.
"""

import os
import sys
from decimal import Decimal, InvalidOperation
from typing import Annotated, NoReturn

import typer

from cli.local.home import Home
from store.db import Database, check_schema
from store.errors import HeadraceError, InvalidRequest, SettingsError
from store.key_checks import check_keys
from store.registry import resolve
from store.roles import API, OPERATOR, WORKER, url_of
from store.settings import Settings, child_environment, load_settings, open_vault
from store.usage import Price, set_price


def located(settings: Settings, role: str | None = OPERATOR) -> dict[str, str]:
    """The environment variables that say where the services are, as far as they are known.

    Into a running stack's own database goes the ``role``; None is its owner.
    """
    record = Home(settings.home).running()
    database_url = settings.database_url or (record.database_url if record else "")
    if record and record.has_roles and not settings.database_url and role:
        database_url = url_of(database_url, role)
    redis_url = settings.redis_url or (record.redis_url if record else "")
    found = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    return {name: value for name, value in found.items() if value}


_ROLES = {"producer_api": API, "workers": WORKER, "workers.dispatcher": WORKER, "migrations": None}


def run_module(module: str, *arguments: str) -> NoReturn:
    """Become ``python -m module``, with the same process id, so that signals and exit codes are its own."""
    env = child_environment(located(load_settings(), _ROLES.get(module, OPERATOR)))
    argv = [sys.executable, "-m", module, *arguments]
    os.execve(sys.executable, argv, env)  # noqa: S606 - no shell, and a list of our own making


def register(
    name: Annotated[str, typer.Argument(help="What jobs will call it.")],
    source: Annotated[str, typer.Argument(help="A folder in the Hugging Face layout, with safetensors.")],
    dtype: Annotated[
        str, typer.Option(help="auto, bfloat16, float32, float16, or int8 if it is close enough.")
    ] = "auto",
    sampling: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=VALUE,…",
            help="How tokens are chosen where a request does not say, such as temperature=0.2,top_p=0.9. For files "
            "that are registered already it replaces what was set. By default: the model's generation_config.json.",
        ),
    ] = None,
) -> None:
    """Register a model's files as its next version."""
    given = [] if sampling is None else ["--sampling", sampling]
    run_module("models.catalog", "register", name, source, "--dtype", dtype, *given)


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


def database(*, keys_checked: bool = True) -> Database:
    """The configured database, or that of the stack that runs; raise SettingsError if there is neither.

    With other encryption keys than were given before, too, unless ``keys_checked`` is False.
    """
    url = located(load_settings()).get("DATABASE_URL")
    if not url:
        raise SettingsError("DATABASE_URL is not set, and no stack is running in HEADRACE_HOME")
    db = Database(url, pool_size=1, application_name="headrace cli", vault=open_vault(load_settings()))
    try:
        check_schema(db)
        if keys_checked:
            check_keys(db, db.vault)
    except HeadraceError:
        db.close()
        raise
    return db

"""What must be there before the processes start: the schema, an API key, and the model's files and registration.

Each step is done once and found done the next time, without starting Python again, so that a second start is quick.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from cli.local.home import Home
from cli.local.process import last_line, run_step
from store.db import Database, is_migrated
from store.errors import NotFound, Unauthenticated, Unavailable
from store.keys import DEFAULT_TENANT, SCOPES, authenticate, bootstrap, create_key, find_tenant
from store.registry import ModelVersion, resolve
from store.roles import can_log_in

Say = Callable[[str], None]

_WITHOUT_FILES = ("fake", "fake-encoder")


def migrate(db: Database, home: Home, env: Mapping[str, str], say: Say, *, with_roles: bool) -> None:
    """Bring the schema to this version, and let the processes' roles log in if they are to.

    Raises Unavailable with the migration's last words if it fails.
    """
    if is_migrated(db) and (not with_roles or can_log_in(db)):
        return
    _run_module("migrations", ["roles"] if with_roles else [], env, home.log("migrate"))
    say("schema migrated")


def ensure_key(db: Database, home: Home) -> str:
    """Return a key of the default tenant that is good now, and keep it in the home."""
    kept = home.api_key()
    if kept:
        try:
            authenticate(db, kept)
        except Unauthenticated:
            pass  # the database is another one, or the key was revoked
        else:
            return kept
    key = bootstrap(db) or create_key(db, find_tenant(db, DEFAULT_TENANT), "local stack", SCOPES, actor="headrace up")
    home.write_api_key(key)
    return key


def ensure_model(db: Database, name: str, home: Home, env: Mapping[str, str], say: Say) -> ModelVersion:
    """Return the model, registered, its files fetched first if it is one the catalog knows.

    Raises Unavailable if that fails.
    """
    if (usable := _usable(db, name)) is not None:
        return usable
    source = home.models / name
    if name in _WITHOUT_FILES:
        _run_module("models.catalog", ["register", name, name], env, home.log("models"))
    else:
        say(f"fetching {name} (once)")
        # To the terminal: it draws a progress bar.
        _run_module("models.catalog", ["fetch", name, "--into", str(home.models)], env, None)
        _run_module("models.catalog", ["register", name, str(source)], env, home.log("models"))
    say(f"model {name} registered")
    return resolve(db, name)


def _usable(db: Database, name: str) -> ModelVersion | None:
    try:
        version = resolve(db, name)
    except NotFound:
        return None
    return version if version.runner in _WITHOUT_FILES or Path(version.source).exists() else None


def _run_module(module: str, arguments: list[str], env: Mapping[str, str], log: Path | None) -> None:
    before = log.stat().st_size if log and log.exists() else 0
    exit_code = run_step([sys.executable, "-m", module, *arguments], env, log)
    if exit_code == 0:
        return
    said = log.read_bytes()[before:].decode(errors="replace") if log else "see above"
    raise Unavailable(f"`python -m {' '.join([module, *arguments])}` failed: {last_line(said)}")

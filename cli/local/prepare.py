"""What must be there before the processes start: the schema, an API key, and the model's files and registration.

Each step is done once and found done the next time, without starting Python again, so that a second start is quick.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from cli.local.home import Home
from cli.local.process import PYTHON, last_line, run_step
from store.db.database import Database, is_migrated
from store.db.roles import can_log_in
from store.errors import NotFound, Unauthenticated, Unavailable
from store.registry.models import ModelVersion, resolve
from store.tenants.api_keys import DEFAULT_TENANT, SCOPES, authenticate, bootstrap, create_key, find_tenant

Say = Callable[[str], None]

CATALOGUE = ("minilm", "smollm2")
"""What ``models.catalog`` fetches, which is not imported here."""

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


def ensure_model(db: Database, asked: str, home: Home, env: Mapping[str, str], say: Say) -> ModelVersion:
    """Return the model version that is asked for, registered.

    ``asked`` is a registered name, a name of the catalogue, whose files are fetched first, or a model's folder, which
    is registered under its own name. Raises Unavailable, with what to do next, if it is none or that fails.
    """
    if not _is_path(asked) and (usable := _usable(db, asked)) is not None:
        return usable
    if asked in _WITHOUT_FILES:
        return _register(db, asked, asked, env, home, say)
    if asked in CATALOGUE and not _is_path(asked):
        say(f"fetching {asked} (once)")
        # To the terminal: it draws a progress bar.
        _run_module("models.catalog", ["fetch", asked, "--into", str(home.models)], env, None)
        return _register(db, asked, str(home.models / asked), env, home, say)
    folder = Path(asked).expanduser()
    if folder.is_dir():
        return _register(db, folder.resolve().name, str(folder.resolve()), env, home, say)
    raise Unavailable(_unknown(asked))


def _register(db: Database, name: str, source: str, env: Mapping[str, str], home: Home, say: Say) -> ModelVersion:
    said = _run_module("models.catalog", ["register", name, source], env, home.log("models"))
    # The last thing it prints is NAME@VERSION, which need not be the version that the name alone means.
    version = resolve(db, said.split()[-1])
    say(f"model {name} registered")
    return version


def _is_path(asked: str) -> bool:
    return asked.startswith((".", "~", "/"))


def _unknown(asked: str) -> str:
    """Say what to do for a model that is neither registered, nor in the catalogue, nor a folder."""
    if _is_path(asked):
        return f"there is no folder {asked}: `hf download ORG/NAME --local-dir {asked}` fetches a model into one"
    name = asked.rpartition("/")[2].partition("@")[0]
    origin = asked if "/" in asked else f"ORG/{name}"
    return (
        f"no model {asked!r} is registered, in the catalogue ({', '.join(CATALOGUE)}) or a folder: "
        f"`hf download {origin} --local-dir {name}` fetches one, then `headrace up --model ./{name}`, "
        f"or `headrace register {name} {name}` while a stack runs"
    )


def _usable(db: Database, name: str) -> ModelVersion | None:
    """Return the registered version if its files are there, None if it is not registered or can be fetched again."""
    try:
        version = resolve(db, name)
    except NotFound:
        return None
    if version.runner in _WITHOUT_FILES or Path(version.source).exists():
        return version
    if name in CATALOGUE:
        return None
    raise Unavailable(
        f"the model {name} is registered, but its folder {version.source} is gone: put it back, or register it from "
        f"another with `headrace up --model FOLDER`"
    )


def _run_module(module: str, arguments: list[str], env: Mapping[str, str], log: Path | None) -> str:
    """Run one of our modules and return what it wrote to the log. Raises Unavailable with its last words."""
    before = log.stat().st_size if log and log.exists() else 0
    exit_code = run_step([*PYTHON, module, *arguments], env, log)
    said = log.read_bytes()[before:].decode(errors="replace") if log else ""
    if exit_code != 0:
        why = last_line(said) if log else "it has said why"
        raise Unavailable(f"`{module} {' '.join(arguments)}` failed: {why}")
    return said

"""Preparation before the processes start: the schema, an API key, the model's files and its registration.

A step that is already done is skipped without starting another Python process, so that the next start is quick.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from headrace.cli.local.home import Home
from headrace.cli.local.process import PYTHON, run_step
from headrace.cli.local.stopping import pause
from headrace.store.child_process import Child, Command, last_line
from headrace.store.db.database import Database, is_migrated
from headrace.store.db.roles import can_log_in
from headrace.store.errors import NotFound, Unauthenticated, Unavailable
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.registry.models import ModelVersion, resolve
from headrace.store.registry.versions import set_alias
from headrace.store.tenants.api_keys import DEFAULT_TENANT, SCOPES, authenticate, bootstrap, create_key, find_tenant

Say = Callable[[str], None]

CATALOGUE = ("minilm", "smollm2")
"""Models that ``models.catalog`` can fetch. It is not imported here."""

_LOOK_S = 0.1
_WITHOUT_FILES = ("fake", "fake-encoder", "fake-classifier")


def migrate(db: Database, home: Home, env: Mapping[str, str], say: Say, *, with_roles: bool) -> None:
    """Upgrade the schema, and let the processes' roles log in if they are used.

    Raises Unavailable with the last line of the migration if it fails.
    """
    if is_migrated(db) and (not with_roles or can_log_in(db)):
        return
    run_module("headrace.migrations", ["roles"] if with_roles else [], env, home.log("migrate"))
    say("schema migrated")


def ensure_key(db: Database, home: Home) -> str:
    """Return a valid key of the default tenant, and store it in the home folder."""
    kept = home.api_key()
    if kept:
        try:
            authenticate(db, kept)
        except Unauthenticated:
            pass  # another database, or the key was revoked
        else:
            return kept
    key = bootstrap(db) or create_key(db, find_tenant(db, DEFAULT_TENANT), "local stack", SCOPES, actor="headrace up")
    home.write_api_key(key)
    return key


def check_asked(models: Sequence[str], *, may_be_registered: bool) -> None:
    """Raise Unavailable, with advice, for a path that is no folder of a model, or a name without a source.

    It needs no service. ``may_be_registered``: there is a database, which may know the name (``check_names``).
    """
    for asked in models:
        if not (_has_source(asked) or (may_be_registered and not _is_path(asked))):
            raise Unavailable(_unknown(asked))


def check_folders(models: Sequence[str], home: Home, env: Mapping[str, str]) -> None:
    """Raise Unavailable with the reason if Headrace's own engine cannot run a given folder. It needs no service."""
    folders = [str(Path(asked).expanduser()) for asked in models if _is_path(asked)]
    if folders:
        run_module("headrace.models.catalog", ["check", *folders], env, home.log("models"))


def check_names(db: Database, models: Sequence[str]) -> None:
    """Raise Unavailable, with advice, if a model has no source. Call it before the first of them is fetched."""
    for asked in models:
        if not _has_source(asked) and _usable(db, asked) is None:
            raise Unavailable(_unknown(asked))


def ensure_model(db: Database, asked: str, home: Home, env: Mapping[str, str], say: Say) -> ModelVersion:
    """Return the requested model version, and register it if necessary.

    ``asked``: a registered name, a name of the catalogue (its files are fetched), or a model's folder (it is registered
    under its own name). Raises Unavailable, with advice, if it is none of these or if a step fails.
    """
    if not _is_path(asked) and (usable := _usable(db, asked)) is not None:
        return usable
    if asked in _WITHOUT_FILES:
        return _register(db, asked, asked, env, home, say)
    if asked in CATALOGUE and not _is_path(asked):
        say(f"fetching {asked} (once)")
        # To the terminal, because it draws a progress bar.
        run_module("headrace.models.catalog", ["fetch", asked, "--into", str(home.models)], env, None)
        return _register(db, asked, str(home.models / asked), env, home, say)
    folder = Path(asked).expanduser()
    if folder.is_dir():
        return _register(db, folder.resolve().name, str(folder.resolve()), env, home, say)
    raise Unavailable(_unknown(asked))


@contextmanager
def fetched_beside(models: Sequence[str], home: Home, env: Mapping[str, str], say: Say) -> Iterator[None]:
    """Fetch the models of the catalogue while the body runs, and wait for the rest of it after the body.

    If a model cannot be fetched, ``ensure_server_model`` tries again and says why. Raises KeyboardInterrupt.
    """
    names = [name for name in dict.fromkeys(models) if name in CATALOGUE and not (home.models / name).is_dir()]
    if names:
        say(f"fetching {', '.join(names)} meanwhile (once)")
    argv = [*PYTHON, "headrace.models.catalog", "fetch"]
    commands = [Command("fetch", [*argv, name, "--into", home.models], home.log("models"), env=env) for name in names]
    children = [Child(command) for command in commands]
    try:
        yield
        while any(child.exit_code is None for child in children):
            pause(_LOOK_S)
    finally:
        for child in children:
            child.stop()


@contextmanager
def kernels_beside(models: Sequence[str], home: Home, env: Mapping[str, str]) -> Iterator[None]:
    """Compile the CPU kernels while the body runs, if a model is to be fetched: then it is the first start here.

    A worker that needs them meanwhile waits for them, and compiles them itself if this failed or was stopped.
    """
    argv: list[str | Path] = [*PYTHON, "headrace.models.native.build", home.path / "native"]
    is_first = any(name in CATALOGUE and not (home.models / name).is_dir() for name in models)
    child = Child(Command("kernels", argv, home.log("kernels"), env=env)) if is_first else None
    try:
        yield
    finally:
        if child:
            child.stop()


def ensure_server_model(
    db: Database, asked: str, kind: EngineKind, home: Home, env: Mapping[str, str], say: Say
) -> str:
    """Return the name of the version that a server of this kind runs of the requested model; register it if necessary.

    ``asked`` is as in ``ensure_model``. Beside a version for another engine, it gets the alias of its kind.
    """
    known = None if asked in CATALOGUE or _is_path(asked) else _usable(db, asked)
    if known is not None and known.engine.kind is kind:
        return asked
    name, folder = asked, Path(asked).expanduser()
    if known is not None:
        name, folder = known.model, Path(known.source)
    elif asked in CATALOGUE:
        folder = home.models / asked
        if not folder.is_dir():
            say(f"fetching {asked} (once)")
            run_module("headrace.models.catalog", ["fetch", asked, "--into", str(home.models)], env, None)
    elif folder.is_dir():
        name = folder.resolve().name
    if not folder.is_dir():
        raise Unavailable(_unknown(asked))
    version = _register(db, name, str(folder.resolve()), env, home, say, "--engine", kind.value)
    if resolve(db, name).version == version.version:
        return name
    set_alias(db, name, kind.value, version.version, actor="headrace up", is_early=True)
    return f"{name}@{kind.value}"


def _register(
    db: Database, name: str, source: str, env: Mapping[str, str], home: Home, say: Say, *options: str
) -> ModelVersion:
    said = run_module("headrace.models.catalog", ["register", name, source, *options], env, home.log("models"))
    # Its last line is NAME@VERSION; NAME alone may mean another version.
    version = resolve(db, said.split()[-1])
    say(f"model {name} registered")
    return version


def _has_source(asked: str) -> bool:
    """True for what needs no registration: a model without files, of the catalogue, or a folder."""
    return asked in (*_WITHOUT_FILES, *CATALOGUE) or Path(asked).expanduser().is_dir()


def _is_path(asked: str) -> bool:
    return asked.startswith((".", "~", "/"))


def _unknown(asked: str) -> str:
    """Return the error for a model that is neither registered, nor in the catalogue, nor a folder."""
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
    """Return the registered version if its files exist; None if it is not registered or can be fetched again."""
    try:
        version = resolve(db, name)
    except NotFound:
        return None
    has_files = version.engine.url is None and version.runner not in _WITHOUT_FILES
    if not has_files or Path(version.source).exists():
        return version
    if name in CATALOGUE:
        return None
    raise Unavailable(
        f"the model {name} is registered, but its folder {version.source} is gone: put it back, or register it from "
        f"another with `headrace up --model FOLDER`"
    )


def run_module(module: str, arguments: list[str], env: Mapping[str, str], log: Path | None) -> str:
    """Run a module of Headrace and return its new log lines. Raises Unavailable with its last line."""
    before = log.stat().st_size if log and log.exists() else 0
    exit_code = run_step([*PYTHON, module, *arguments], env, log)
    said = log.read_bytes()[before:].decode(errors="replace") if log else ""
    if exit_code != 0:
        why = last_line(said) if log else "it has said why"
        raise Unavailable(f"`{module} {' '.join(arguments)}` failed: {why}")
    return said

"""A complete Headrace stack on one machine: services, schema, key, model, and four kinds of processes.

Defines the settings of each process and the order of their end: API, workers (they drain), dispatcher, Flower, Valkey,
PostgreSQL. The supervisor restarts processes; the kernel ends them if this process dies.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headrace.cli.local.engine_environment import ensure_environment
from headrace.cli.local.home import Home, StackRecord
from headrace.cli.local.prepare import (
    check_asked,
    check_folders,
    check_names,
    ensure_key,
    ensure_model,
    ensure_server_model,
    fetched_beside,
    kernels_beside,
    migrate,
)
from headrace.cli.local.process import PYTHON, answers
from headrace.cli.local.services import Services, running_services
from headrace.cli.local.stopping import wait_until_ready
from headrace.store.calls.addresses import parse_networks
from headrace.store.child_process import Child, Command
from headrace.store.db.database import Database
from headrace.store.db.roles import API, WORKER
from headrace.store.db.seal_part import check_seal, open_seal
from headrace.store.db.tls import check_transport
from headrace.store.errors import SettingsError, Unavailable
from headrace.store.ports import free_port
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.registry.models import ModelVersion, resolve
from headrace.store.seal import Seal
from headrace.store.settings import Settings, child_environment, otel_environment, redis_environment
from headrace.store.supervisor import Program, Supervisor
from headrace.store.tracing.otel_settings import read_otel_settings

Say = Callable[[str], None]

_FLOWER = "flower"
_FLOWER_USER = "headrace"
LOCAL_MODULES = ("uvicorn", "fastapi", "torch", "flower")
# The first start imports torch from a cold disk and reads the model.
_READY_S = 180.0
# Without progress: an inference server that compiles, or reads a large model, is waited for (``wait_until_ready``).
_SERVER_READY_S = 600.0


@dataclass(frozen=True)
class ServerChoice:
    """The inference server that each worker starts. ``python`` None: that of an environment in the home folder."""

    kind: EngineKind
    python: Path | None = None
    arguments: tuple[str, ...] = ()

    def options(self) -> list[str]:
        """Return the options of a worker."""
        return ["--engine", self.kind.value, "--", *self.arguments]


@dataclass(frozen=True)
class Stack:
    """A running stack, and its addresses and key. ``names``: what requests call the ``models``."""

    api_url: str
    api_key: str
    flower_url: str
    flower_user: str
    flower_password: str
    models: tuple[ModelVersion, ...]
    names: tuple[str, ...]
    worker_metrics_urls: tuple[str, ...]
    supervisor: Supervisor


@dataclass(frozen=True)
class _Ports:
    api: int
    flower: int
    worker_metrics: tuple[int, ...]


@contextmanager
def running_stack(
    settings: Settings,
    models: Sequence[str],
    say: Say,
    changes: Mapping[str, str] | None = None,
    server: ServerChoice | None = None,
    memory: str | None = None,
    autoscale: str | None = None,
) -> Iterator[Stack]:
    """Yield a stack with all processes ready. At the end everything that was started is stopped, in order.

    ``changes``: additional settings of the processes. ``server``: what computes; None: what each model is registered
    for. ``memory``: of a model host, which serves all registered models instead of a worker for each. ``autoscale``:
    the least and the most workers of each model, such as 0..4, of a host that has as many as are needed. Raises
    Unavailable if a part cannot be started; the parts that were started are stopped then.
    """
    check_installed()
    _check_settings(settings)
    seal = open_seal(settings)
    home = Home(settings.home)
    check_asked(models, may_be_registered=bool(settings.database_url) or (home.path / "pg").exists())
    with ExitStack() as cleanup:
        cleanup.enter_context(home.locked())
        if server is None:
            check_folders(models, home, child_environment({}))
            if settings.native_kernels != "off":
                cleanup.enter_context(kernels_beside(models, home, child_environment({})))
        engine = {} if server is None else {"HEADRACE_ENGINE_PYTHON": str(_engine_python(server, home, models, say))}
        services = cleanup.enter_context(running_services(settings, home, say))
        env = _environment(services, home, {**engine, **(changes or {})})
        key, versions, names = _prepare(services, models, server, home, env, say, seal)
        if autoscale:
            env["HEADRACE_AUTOSCALE"] = ",".join(dict.fromkeys(f"{name}={autoscale}" for name in names))
        ports = _choose_ports(settings, 0 if memory or autoscale else len(models), say)
        envs = _as_roles(services, env)
        kind = ["--memory", memory] if memory else ["--autoscale"] if autoscale else None
        served = _host(settings, kind, home, envs) if kind else _workers(settings, names, server, home, envs, ports)
        programs = _programs(settings, served, home, envs, ports)
        for program in programs:
            cleanup.callback(program.stop)
        _start(programs, _SERVER_READY_S if any(one.engine.is_external for one in versions) else _READY_S, say)
        api_url = _url(settings.api_host, ports.api)
        stack = Stack(
            api_url=api_url,
            api_key=key,
            flower_url=_url(settings.flower_host, ports.flower),
            flower_user=_FLOWER_USER,
            flower_password=home.flower_password(),
            models=versions,
            names=names,
            worker_metrics_urls=tuple(f"http://127.0.0.1:{port}/metrics" for port in ports.worker_metrics),
            supervisor=Supervisor([*services.servers, *programs], say),
        )
        home.write_record(_record(stack, services, names))
        cleanup.enter_context(home.pointed_to())
        yield stack


def _environment(services: Services, home: Home, changes: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the processes, with the settings in ``changes``."""
    return child_environment(
        {
            "DATABASE_URL": services.database_url,
            "REDIS_URL": services.redis_url,
            "HEADRACE_HOME": str(home.path),
            "PYTHONUNBUFFERED": "1",
            **changes,
        }
    )


def _engine_python(server: ServerChoice, home: Home, models: Sequence[str], say: Say) -> Path:
    """Return the Python of the server's environment. Raises Unavailable if it is missing and cannot be made.

    The models are fetched meanwhile.
    """
    if server.python is None:
        env = child_environment({})
        with fetched_beside(models, home, env, say):
            return ensure_environment(server.kind, home, env, say)
    if not server.python.is_file():
        raise Unavailable(f"--engine-python {server.python} is no file: give the Python of an environment")
    return server.python.absolute()


def _start(programs: Sequence[Program], ready_s: float, say: Say) -> None:
    """Start all programs and wait until each is ready. Raises Unavailable if one is not ready in time."""
    flower, *others = programs
    # Flower starts after the workers, because it asks for their names only once. It ends before the servers.
    for group in (others, [flower]):
        for program in group:
            program.start()
        wait_until_ready(group, ready_s, say)


def check_installed() -> None:
    """Raise Unavailable if this installation lacks modules of the processes."""
    missing = [name for name in LOCAL_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise Unavailable(
            f"this Headrace was installed without its extra `local`, which brings {', '.join(missing)} and servers: "
            "install it again with that extra (README, Two commands)"
        )


def _check_settings(settings: Settings) -> None:
    """Raise SettingsError for what a process of the stack would refuse: before servers and models, not after them."""
    parse_networks(settings.webhook_allow_networks)
    read_otel_settings(otel_environment())
    check_transport(settings)
    for name, host in (("API", settings.api_host), ("FLOWER", settings.flower_host)):
        try:
            free_port(host, 0)
        except OSError as error:
            raise SettingsError(f"HEADRACE_{name}_HOST: cannot listen on {host}: {error.strerror or error}") from error


def _as_roles(services: Services, env: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the environments of the API, of the workers and the dispatcher, and of Flower, which gets Redis alone."""
    api = {**env, "DATABASE_URL": services.url_of(API)}
    if not services.has_roles:
        # A given address includes a user; its rights are managed by the operator.
        api.setdefault("HEADRACE_ROW_SECURITY", "off")
    flower = {**redis_environment(), "REDIS_URL": services.redis_url, "PYTHONUNBUFFERED": "1"}
    return {API: api, WORKER: {**env, "DATABASE_URL": services.url_of(WORKER)}, _FLOWER: flower}


def _prepare(
    services: Services,
    models: Sequence[str],
    server: ServerChoice | None,
    home: Home,
    env: Mapping[str, str],
    say: Say,
    seal: Seal,
) -> tuple[str, tuple[ModelVersion, ...], tuple[str, ...]]:
    """Migrate the database and register the models. Returns an API key, the versions, and what requests call them."""
    db = Database(services.database_url, pool_size=1, application_name="headrace up", seal=seal)
    try:
        migrate(db, home, env, say, with_roles=services.has_roles)
        check_seal(db)
        check_names(db, models)
        if server is None:
            versions = tuple(ensure_model(db, model, home, env, say) for model in models)
            names = tuple(served_as(model, version) for model, version in zip(models, versions, strict=True))
        else:
            names = tuple(ensure_server_model(db, model, server.kind, home, env, say) for model in models)
            versions = tuple(resolve(db, name) for name in names)
        return ensure_key(db, home), versions, names
    finally:
        db.close()


def served_as(asked: str, version: ModelVersion) -> str:
    """Return the model of a worker: the given name, or the version that was registered for a folder."""
    return asked if asked.partition("@")[0] == version.model else f"{version.model}@{version.version}"


def _choose_ports(settings: Settings, num_workers: int, say: Say) -> _Ports:
    api = free_port(settings.api_host, settings.api_port)
    flower = free_port(settings.flower_host, settings.flower_port)
    for name, wanted, got in (("API", settings.api_port, api), ("Flower", settings.flower_port, flower)):
        if wanted not in (0, got):
            say(f"port {wanted} is taken: {name} listens on {got}")
    metrics = [settings.worker_metrics_port] + [0] * num_workers
    return _Ports(api, flower, tuple(free_port("127.0.0.1", port) for port in metrics[:num_workers]))


def _programs(
    settings: Settings,
    served: Sequence[Program],
    home: Home,
    envs: Mapping[str, Mapping[str, str]],
    ports: _Ports,
) -> list[Program]:
    """All processes of the stack, in the reverse order of their end. ``served``: the workers, or the model host."""
    program = partial(_program, home, envs)
    flower = program(
        _FLOWER,
        ["headrace.workers.flower"],
        answers(_url(settings.flower_host, ports.flower) + "/healthcheck"),
        HEADRACE_FLOWER_PORT=str(ports.flower),
        HEADRACE_FLOWER_BASIC_AUTH=f"{_FLOWER_USER}:{home.flower_password()}",
    )
    dispatcher = program("dispatcher", ["headrace.workers.dispatcher"], lambda _child: True)
    api = program(
        "api",
        ["headrace.producer_api"],
        answers(_url(settings.api_host, ports.api) + "/readyz"),
        HEADRACE_API_PORT=str(ports.api),
    )
    return [flower, dispatcher, *served, api]


def _workers(
    settings: Settings,
    models: Sequence[str],
    server: ServerChoice | None,
    home: Home,
    envs: Mapping[str, Mapping[str, str]],
    ports: _Ports,
) -> list[Program]:
    """A worker for each model."""
    program = partial(_program, home, envs)
    return [
        program(
            "worker" if len(models) == 1 else f"worker-{model.replace('/', '_')}",
            ["headrace.workers", "--model", model, *([] if server is None else server.options())],
            # The page exists once the model is loaded and all threads run.
            answers(f"http://127.0.0.1:{port}/{'metrics' if server is None else 'readyz'}"),
            # Its own inference server has some seconds to end.
            stop_s=settings.drain_s + (10 if server is None else 20),
            HEADRACE_WORKER_METRICS_PORT=str(port),
        )
        for model, port in zip(models, ports.worker_metrics, strict=True)
    ]


def _host(settings: Settings, kind: Sequence[str], home: Home, envs: Mapping[str, Mapping[str, str]]) -> list[Program]:
    """A model host instead of workers."""
    port = free_port("127.0.0.1", settings.host_port)
    return [
        _program(
            home,
            envs,
            "host",
            ["headrace.features.hosts", *kind],
            answers(f"http://127.0.0.1:{port}/readyz"),
            # Its workers drain, and inference servers of their own have some seconds to end.
            stop_s=settings.drain_s + 30,
            HEADRACE_HOST_PORT=str(port),
            HEADRACE_HEALTH_HOST="127.0.0.1",
        )
    ]


def _program(
    home: Home,
    envs: Mapping[str, Mapping[str, str]],
    name: str,
    arguments: list[str],
    is_ready: Callable[[Child], bool],
    stop_s: float = 10.0,
    **more: str,
) -> Program:
    """One process, with the environment of its role and the settings in ``more``."""
    argv: list[str | Path] = [*PYTHON, *arguments]
    env = envs[{"api": API, _FLOWER: _FLOWER}.get(name, WORKER)]
    return Program(Command(name, argv, home.log(name), env={**env, **more}), is_ready, stop_s)


def _record(stack: Stack, services: Services, models: Sequence[str]) -> StackRecord:
    return StackRecord(
        database_url=services.database_url,
        has_roles=services.has_roles,
        redis_url=services.redis_url,
        api_url=stack.api_url,
        flower_url=stack.flower_url,
        models=list(models),
    )


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - translated, not bound
    return f"http://{reachable}:{port}"

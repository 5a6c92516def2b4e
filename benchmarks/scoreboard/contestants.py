"""Who takes part, and how each is started: its APIs, two workers of eight jobs each, the same Redis and Postgres.

How a peer is set up is in ``apps``. Everything that a fault may hit is named here.
"""

import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx2

from benchmarks.queue import headrace
from benchmarks.queue.contestants import wait_until_answering
from benchmarks.queue.services import Services
from benchmarks.scoreboard.callers import Caller, HeadraceCaller, LitellmCaller
from benchmarks.scoreboard.kept import Found, Kept, Target
from benchmarks.scoreboard.model_server import MODEL
from benchmarks.venvs import environment
from headrace.store.child_process import Command
from headrace.store.db.roles import WORKER, url_of
from headrace.store.ports import free_port
from headrace.store.redis.connection import broker_options
from headrace.store.settings import child_environment

APPS = Path(__file__).parent / "apps"
NUM_WORKERS, SLOTS = 2, 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class Running:
    """A contestant that serves: what faults may hit, and how it is called. ``doors`` take, hand out or report jobs."""

    workers: Sequence[Target]
    doors: Sequence[Target]
    caller: Callable[[httpx2.AsyncClient], Caller]


Run = Callable[[Services, int, Say, int], AbstractContextManager[Running]]


@dataclass(frozen=True)
class Contestant:
    """One row of the table. ``venv``: of ``benchmarks.venvs``. ``has_effect``: whether a job can have a side effect.

    ``run`` gets the servers, the port of the model, what prints, and how many APIs there are; Ray and LiteLLM have as
    many as they have.
    """

    name: str
    what: str
    run: Run = field(repr=False)
    venv: str | None = None
    has_effect: bool = True


class Started:
    """Starts processes of one contestant in its environment; ``end`` stops them."""

    def __init__(self, services: Services, model_port: int, bin_folder: Path) -> None:
        broker = broker_options(services.redis_url)["broker_url"]
        self.bin = bin_folder
        self.env = child_environment(
            {
                "MODEL_URL": f"http://127.0.0.1:{model_port}",
                "BROKER_URL": broker,
                "RESULT_URL": broker.replace("virtual_host=0", "virtual_host=1"),
                "PYTHONPATH": str(APPS),
                "REDIS_URL": services.redis_url,
                "ROWS_URL": services.database_url.replace("+psycopg", ""),
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_FOLDER": str(services.folder / "ray"),
            }
        )
        self._folder = services.folder
        self._cleanup = ExitStack()

    def keep(self, name: str, *argv: str | Path) -> Kept:
        program, *rest = argv
        kept = Kept(Command(name, [self.bin / program, *rest], self._folder / f"{name}.log", env=self.env, cwd=APPS))
        self._cleanup.callback(kept.stop)
        return kept

    def end(self) -> None:
        self._cleanup.close()


@contextmanager
def _started(venv: str, services: Services, model_port: int, say: Say) -> Iterator[Started]:
    started = Started(services, model_port, environment(venv, say))
    try:
        yield started
    finally:
        started.end()


def _library(app: str, *worker: str, prepare: Sequence[str] = (), streams: bool = False, cancels: bool = True) -> Run:
    """A task library: ``app`` is its module and its environment; ``worker`` the arguments of one worker."""

    @contextmanager
    def run(services: Services, model_port: int, say: Say, num_apis: int) -> Iterator[Running]:
        with _started(app, services, model_port, say) as started:
            started.env["STREAMS"] = "1" if streams else ""
            if prepare:
                subprocess.run([started.bin / prepare[0], *prepare[1:]], env=started.env, cwd=APPS, check=True)
            ports = [free_port("127.0.0.1", 0) for _ in range(num_apis)]
            serve = ("uvicorn", f"{app}_app:app", "--no-access-log", "--log-level", "warning", "--port")
            doors = [started.keep(f"door-{port}", *serve, str(port)) for port in ports]
            for port in ports:
                wait_until_answering(f"http://127.0.0.1:{port}/openapi.json", [])
            workers = [
                started.keep(f"worker-{number}", *(part.replace("{n}", str(number)) for part in worker))
                for number in range(NUM_WORKERS)
            ]
            yield Running(workers, doors, partial(Caller, ports=ports, streams=streams, cancels=cancels))

    return run


@contextmanager
def _ray(services: Services, model_port: int, say: Say, _num_apis: int) -> Iterator[Running]:
    with _started("ray", services, model_port, say) as started:
        port = free_port("127.0.0.1", 0)
        head = started.keep("head", "python", "ray_app.py", str(port))
        wait_until_answering(f"http://127.0.0.1:{port}/openapi.json", [])

        def found(name: str, place: int = 0) -> Found:
            return Found(head.pids, lambda line: line.startswith("ray::") and name in line, place)

        workers = [found("Consumer", number) for number in range(NUM_WORKERS)]
        yield Running(workers, [found(":Api"), found("ProxyActor")], partial(Caller, ports=[port]))


@contextmanager
def _litellm(services: Services, model_port: int, say: Say, _num_apis: int) -> Iterator[Running]:
    """Two proxies: each takes jobs and works on them in itself."""
    key = f"sk-{secrets.token_hex(24)}"
    config = {
        "general_settings": {"master_key": key},
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"hosted_vllm/{MODEL}",
                    "api_base": f"http://127.0.0.1:{model_port}/v1",
                    "api_key": "none",
                    "use_chat_completions_api": True,
                },
            }
        ],
        "litellm_settings": {
            "cache": True,
            "cache_params": {"type": "redis", "url": services.redis_url, "supported_call_types": []},
            "responses": {"background_mode": {"polling_via_cache": "all", "ttl": 3600}},
        },
    }
    path = services.folder / "litellm.json"
    path.write_text(json.dumps(config))
    with _started("litellm", services, model_port, say) as started:
        ports = [free_port("127.0.0.1", 0) for _ in range(NUM_WORKERS)]
        proxies = [
            started.keep(f"proxy-{port}", "litellm", "--config", path, "--host", "127.0.0.1", "--port", str(port))
            for port in ports
        ]
        for port in ports:
            wait_until_answering(f"http://127.0.0.1:{port}/health/liveliness", [], within_s=240)
        yield Running(proxies, proxies, lambda http: LitellmCaller(_with_key(http, key), ports))


def _with_key(http: httpx2.AsyncClient, key: str) -> httpx2.AsyncClient:
    http.headers["Authorization"] = f"Bearer {key}"
    return http


@contextmanager
def _headrace(services: Services, model_port: int, say: Say, num_apis: int) -> Iterator[Running]:
    url = f"http://127.0.0.1:{model_port}"
    register = (MODEL, "--engine", "openai", "--url", url, "--context-window", "4096")
    changes = {
        "HEADRACE_MAX_SLOTS": str(SLOTS),
        "HEADRACE_WEBHOOK_ALLOW_HTTP": "true",
        "HEADRACE_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
    }
    with (
        headrace.running(services, say, changes, with_worker=False, register=register) as stack,
        ExitStack() as cleanup,
    ):

        def keep(name: str, command: Command) -> Kept:
            kept = Kept(command)
            cleanup.callback(kept.stop)
            return kept

        workers = []
        env = {**stack.env, "DATABASE_URL": url_of(services.database_url, WORKER)}
        for number in range(NUM_WORKERS):
            argv = [sys.executable, "-m", "headrace.workers", "--model", MODEL]
            name = f"worker-{number}"
            workers.append(keep(name, Command(name, argv, services.folder / f"{name}.log", env=env)))
        # The stack's own, under this supervisor, so that they are started again as all others are.
        doors = []
        ports = [stack.port, *(free_port("127.0.0.1", 0) for _ in range(num_apis - 1))]
        for name, program in stack.programs.items():
            assert program.child is not None
            command = program.child.command
            program.stop()
            doors.append(keep(name, command))
            if name == "API":
                for port in ports[1:]:
                    env = {**(command.env or {}), "HEADRACE_API_PORT": str(port)}
                    log = services.folder / f"api-{port}.log"
                    doors.append(keep(f"{name}-{port}", replace(command, name=f"api-{port}", env=env, log=log)))
        for port in ports:
            wait_until_answering(f"http://127.0.0.1:{port}/readyz", [])
        caller = partial(HeadraceCaller, ports=ports, streams=True, effects_url=f"{url}/effects")
        yield Running(workers, doors, lambda http: caller(_with_key(http, stack.api_key)))


_CELERY = ("celery", "-A", "celery_app:celery", "worker", "--loglevel", "WARNING", "--concurrency", str(SLOTS))
_PROCRASTINATE = ("procrastinate", "--app", "procrastinate_app.queue")
_TASKIQ = ("taskiq", "worker", "taskiq_app:broker", "--workers", "1", "--max-async-tasks", str(SLOTS))

CONTESTANTS = (
    Contestant("headrace", "Headrace", _headrace),
    Contestant("celery", "Celery", _library("celery", *_CELERY, "--hostname", "w{n}@here"), "celery"),
    Contestant(
        "celery-stream",
        "Celery, FastAPI, streams by hand",
        _library("celery", *_CELERY, "--hostname", "w{n}@here", streams=True),
        "celery",
    ),
    Contestant(
        "procrastinate",
        "Procrastinate",
        _library("procrastinate", *_PROCRASTINATE, "worker", prepare=(*_PROCRASTINATE, "schema", "--apply")),
        "procrastinate",
    ),
    Contestant("taskiq", "Taskiq, Redis streams", _library("taskiq", *_TASKIQ, cancels=False), "taskiq"),
    Contestant("ray", "Ray Serve, task consumer", _ray, "ray"),
    Contestant("litellm", "LiteLLM, background responses", _litellm, "litellm", has_effect=False),
)

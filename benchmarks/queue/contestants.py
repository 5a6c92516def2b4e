"""Who takes part, how each is started and spoken to. Knows processes and ports; measures nothing.

Every contestant has one API process, uvicorn where it is free to choose, and meets the same Redis and Postgres. Peers
get Redis without its append-only file; Headrace has it on.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2

from benchmarks.queue import headrace
from benchmarks.queue.load import Dialect
from benchmarks.queue.services import Services
from benchmarks.venvs import environment
from headrace.store.child_process import Child, Command, descendants, still_alive
from headrace.store.ports import free_port
from headrace.store.redis.connection import broker_options
from headrace.store.settings import child_environment

APPS = Path(__file__).parent / "apps"
_READY_S = 90.0

Say = Callable[[str], None]


class DoesNotRun(Exception):
    """A contestant did not come up; the message is its last output."""


@dataclass(frozen=True)
class Running:
    """A contestant that answers. ``layers`` names the root processes; the CPU of each tree is counted together."""

    port: int
    dialect: Dialect
    layers: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Contestant:
    """One row of the table. ``stores`` is the place of a job's state after the last poll."""

    name: str
    what: str
    stores: str
    run: Callable[[Services, Say], AbstractContextManager[Running]]
    venv: str | None = None
    uses_postgres: bool = False


_CELERY = Dialect(
    submit_path="/jobs",
    submit_body='{"text": "job {n}"}',
    poll_path="/jobs/{id}",
    succeeded=("SUCCESS", "succeeded"),
    failed=("FAILURE", "REVOKED", "failed"),
)
_BENTO_TASK = Dialect(
    submit_path="/work/submit",
    submit_body='{"text": "job {n}"}',
    poll_path="/work/status?task_id={id}",
    id_field="task_id",
    succeeded=("success", "completed"),
    failed=("failure", "failed", "cancelled"),
)
_SYNC = Dialect(submit_path="/predict", submit_body='{"text": "job {n}"}', state_field=None)
_BENTO_BATCH = Dialect(submit_path="/batch", submit_body='{"text": ["job {n}"]}', state_field=None)


@contextmanager
def _headrace(services: Services, say: Say) -> Iterator[Running]:
    with headrace.running(services, say) as stack:
        yield Running(stack.port, stack.dialect, stack.layers)


@contextmanager
def _headrace_waiting(services: Services, say: Say) -> Iterator[Running]:
    """One request a job: the submit asks to be answered when the job has ended."""
    with headrace.running(services, say) as stack:
        headers = {**stack.dialect.headers, "Prefer": "wait=30"}
        yield Running(stack.port, replace(stack.dialect, poll_path=None, headers=headers), stack.layers)


def _celery(app: str, venv: str, *worker: str) -> Callable[[Services, Say], AbstractContextManager[Running]]:
    @contextmanager
    def run(services: Services, say: Say) -> Iterator[Running]:
        bin_folder, port = environment(venv, say), free_port("127.0.0.1", 0)
        env = _environment(services)
        with ExitStack() as cleanup:
            if app == "rows":
                _wait_for_end(_start(cleanup, services, "rows", [bin_folder / "python", "rows.py"], env))
            worker_argv = [bin_folder / "celery", "-A", f"{app}:celery", "worker", "--loglevel", "WARNING", *worker]
            api_argv = [bin_folder / "uvicorn", f"{app}:app", "--port", str(port), "--no-access-log"]
            children = {
                "worker": _start(cleanup, services, f"{app}-worker", worker_argv, env),
                "API": _start(cleanup, services, f"{app}-api", [*api_argv, "--log-level", "warning"], env),
            }
            wait_until_answering(f"http://127.0.0.1:{port}/openapi.json", children.values())
            yield Running(port, _CELERY, {name: [child.pid] for name, child in children.items()})

    return run


def _single(
    name: str, venv: str, argv: Sequence[str], health: str, dialect: Dialect
) -> Callable[[Services, Say], AbstractContextManager[Running]]:
    """A contestant with one root process."""

    @contextmanager
    def run(services: Services, say: Say) -> Iterator[Running]:
        bin_folder, port = environment(venv, say), free_port("127.0.0.1", 0)
        program, *rest = (part.replace("{port}", str(port)) for part in argv)
        with ExitStack() as cleanup:
            child = _start(cleanup, services, name, [bin_folder / program, *rest], _environment(services))
            wait_until_answering(f"http://127.0.0.1:{port}{health}", [child])
            yield Running(port, dialect, {"server": [child.pid]})

    return run


def _environment(services: Services) -> dict[str, str]:
    broker = broker_options(services.redis_url)["broker_url"]
    return child_environment(
        {
            "BROKER_URL": broker,
            "RESULT_URL": broker.replace("virtual_host=0", "virtual_host=1"),
            "ROWS_URL": services.database_url,
            "BENTOML_DO_NOT_TRACK": "true",
            "BENTOML_HOME": str(services.folder / "bentoml"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_FOLDER": str(services.folder / "ray"),
        }
    )


def _start(
    cleanup: ExitStack, services: Services, name: str, argv: Sequence[str | Path], env: Mapping[str, str]
) -> Child:
    child = Child(Command(name, argv, services.folder / f"{name}.log", env=env, cwd=APPS))
    cleanup.callback(_stop, child)
    return child


def _stop(child: Child) -> None:
    """End it and everything it started, in whatever session that is."""
    family = descendants(child.pid)
    child.stop(15)
    for _ in range(50):
        if not (family := still_alive(family)):
            return
        time.sleep(0.1)
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait_for_end(child: Child) -> None:
    deadline = time.monotonic() + _READY_S
    while (code := child.exit_code) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if code != 0:
        raise DoesNotRun(child.log_tail(300))


def wait_until_answering(url: str, children: Iterable[Child], within_s: float = _READY_S) -> None:
    """Return when the address answers; raise DoesNotRun when a process has ended or the time is over."""
    watched = list(children)
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        for child in watched:
            if child.exit_code is not None:
                raise DoesNotRun(f"{child.command.name} ended: {child.log_tail(300)}")
        try:
            if httpx2.get(url, timeout=2, trust_env=False).status_code == httpx2.codes.OK:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise DoesNotRun(f"no answer within {within_s:.0f} s")


_THREADS = ("--pool", "threads", "--concurrency", "32")
_PREFORK = ("--pool", "prefork", "--concurrency", "2")
_REDIS = "Redis"

CONTESTANTS = (
    Contestant("headrace", "Headrace", "Postgres, fenced", _headrace, uses_postgres=True),
    Contestant("headrace-wait", "Headrace, Prefer: wait", "Postgres, fenced", _headrace_waiting, uses_postgres=True),
    Contestant("a-prefork", "(a) FastAPI + Celery, prefork", _REDIS, _celery("plain", "celery", *_PREFORK), "celery"),
    Contestant("a-threads", "(a) FastAPI + Celery, threads", _REDIS, _celery("plain", "celery", *_THREADS), "celery"),
    Contestant(
        "b-prefork",
        "(b) … a row per job, acks_late, prefork",
        "Postgres",
        _celery("rows", "celery", *_PREFORK),
        "celery",
        uses_postgres=True,
    ),
    Contestant(
        "b-threads",
        "(b) … a row per job, acks_late, threads",
        "Postgres",
        _celery("rows", "celery", *_THREADS),
        "celery",
        uses_postgres=True,
    ),
    Contestant("c-batches", "(c) celery-batches", _REDIS, _celery("batches", "batches", *_PREFORK), "batches"),
    Contestant(
        "d-bento-task",
        "(d) BentoML task",
        "SQLite",
        _single(
            "bento",
            "bentoml",
            ["bentoml", "serve", "bento:Service", "--port", "{port}", "--quiet"],
            "/readyz",
            _BENTO_TASK,
        ),
        "bentoml",
    ),
    Contestant(
        "e-ray",
        "(e) Ray Serve @task_consumer",
        _REDIS,
        _single("ray", "ray", ["python", "rayserve.py", "{port}"], "/openapi.json", _CELERY),
        "ray",
    ),
    Contestant(
        "litserve",
        "LitServe, batching (no queue)",
        "nothing",
        _single("litserve", "litserve", ["python", "lit.py", "{port}"], "/health", _SYNC),
        "litserve",
    ),
    Contestant(
        "bento-batch",
        "BentoML, batching (no queue)",
        "nothing",
        _single(
            "bento",
            "bentoml",
            ["bentoml", "serve", "bento:Service", "--port", "{port}", "--quiet"],
            "/readyz",
            _BENTO_BATCH,
        ),
        "bentoml",
    ),
)

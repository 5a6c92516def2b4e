"""Headrace as a contestant: one API, one worker with the fake runner, the dispatcher; defaults but for rate limits."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import httpx2

from benchmarks.queue.load import Dialect
from benchmarks.queue.services import Services
from headrace.cli.local.home import Home
from headrace.cli.local.prepare import ensure_key, migrate
from headrace.cli.local.process import run_step
from headrace.cli.local.stopping import wait_until_ready
from headrace.store.child_process import Child, Command
from headrace.store.db.database import Database
from headrace.store.db.roles import API, WORKER, url_of
from headrace.store.ports import free_port
from headrace.store.settings import child_environment
from headrace.store.supervisor import Program

Say = Callable[[str], None]

# A tiny task, as the peers' is: one token.
_BODY = '{"model": "fake", "input": {"prompt": "job {n}"}, "sampling": {"max_tokens": 1}}'
_SETTINGS = {
    "HEADRACE_FAKE_STEP_MS": "0",
    # One client may do everything here.
    "HEADRACE_REQUESTS_PER_MINUTE": "10000000",
    "HEADRACE_TOKENS_PER_MINUTE": "1000000000",
}


@dataclass(frozen=True)
class Stack:
    """A Headrace that serves."""

    port: int
    dialect: Dialect
    api_key: str = field(repr=False)
    env: dict[str, str] = field(repr=False)
    programs: dict[str, Program]

    @property
    def layers(self) -> dict[str, list[int]]:
        """The root process of each layer, for the costs."""
        return {name: [child.pid] for name, program in self.programs.items() if (child := program.child)}


@contextmanager
def running(
    services: Services,
    say: Say,
    changes: dict[str, str] | None = None,
    *,
    with_worker: bool = True,
    workers: list[str] | None = None,
    register: tuple[str, ...] = ("fake", "fake"),
) -> Iterator[Stack]:
    """Yield a stack when all its processes are ready; ``changes`` are settings on top. The caller may bring the
    workers. ``workers``: the module that runs them, with its arguments, instead of one worker. ``register``: the
    arguments that register the model, its name first."""
    home = Home(services.folder / "home")
    port, metrics_port = free_port("127.0.0.1", 0), free_port("127.0.0.1", 0)
    env = child_environment(
        {
            "DATABASE_URL": services.database_url,
            "REDIS_URL": services.redis_url,
            "HEADRACE_HOME": str(home.path),
            "HEADRACE_API_PORT": str(port),
            **_SETTINGS,
            **(changes or {}),
        }
    )
    key = _prepare(services, home, env, say, register)

    def program(name: str, arguments: list[str], is_ready: Callable[[Child], bool], **more: str) -> Program:
        argv = [sys.executable, "-m", *arguments]
        more["DATABASE_URL"] = url_of(services.database_url, API if name == "api" else WORKER)
        return Program(Command(name, argv, home.log(name), env={**env, **more}), is_ready, 20)

    programs = {"dispatcher": program("dispatcher", ["headrace.workers.dispatcher"], lambda _child: True)}
    if workers:
        programs["worker"] = program("worker", workers, lambda _child: True)
    elif with_worker:
        ready = answers(metrics_port, "/metrics")
        programs["worker"] = program(
            "worker", ["workers", "--model", register[0]], ready, HEADRACE_WORKER_METRICS_PORT=str(metrics_port)
        )
    programs["API"] = program("api", ["producer_api"], answers(port, "/readyz"))
    with ExitStack() as cleanup:
        for each in programs.values():
            cleanup.callback(each.stop)
            each.start()
        wait_until_ready(list(programs.values()), 120)
        yield Stack(port, dialect(key, _BODY), key, env, programs)


def dialect(key: str, body: str) -> Dialect:
    """Return how jobs with this body are submitted and polled."""
    return Dialect(
        submit_path="/v1/jobs",
        submit_body=body,
        poll_path="/v1/jobs/{id}",
        failed=("failed", "cancelled", "expired"),
        headers={"Authorization": f"Bearer {key}"},
    )


def _prepare(services: Services, home: Home, env: dict[str, str], say: Say, register: tuple[str, ...]) -> str:
    """Migrate, register the model and return an API key."""
    (home.path / "logs").mkdir(parents=True, exist_ok=True)
    db = Database(services.database_url, pool_size=1, application_name="bench-queue")
    try:
        migrate(db, home, env, say, with_roles=True)
        log = home.log("register")
        if run_step([sys.executable, "-m", "headrace.models.catalog", "register", *register], env, log):
            raise SystemExit(f"{' '.join(register)} was not registered: {log.read_text()[-500:]}")
        return ensure_key(db, home)
    finally:
        db.close()


def answers(port: int, path: str) -> Callable[[Child], bool]:
    """Return the check that a server answers well at this path."""

    def ask(_child: Child) -> bool:
        try:
            return httpx2.get(f"http://127.0.0.1:{port}{path}", timeout=2, trust_env=False).is_success
        except httpx2.TransportError:
            return False

    return ask

"""Real processes of the product under a supervisor, with their own database, for the fault tests.

The supervisor restarts an ended process (without its armed fault, unless the test gives another), and continues a
stopped process after a pause longer than a lease.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy import Engine, text

from headrace.migrations.roles import let_in
from headrace.migrations.schema import upgrade
from headrace.store.child_process import Child, Command
from headrace.store.db.database import Database
from headrace.store.db.roles import API, ROLES, WORKER
from headrace.store.ids import new_id
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import NewJob
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.redis.connection import connect
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.tenants import api_keys
from tests.processes import ROOT, free_port, wait_for
from tests.reliability.client import Client
from tests.roles import ROLE_PASSWORD, role_url

LEASE_S = 4.0
SWEEP_S = 0.5
PAUSE_S = 2 * LEASE_S
LONG_LEASE_S = 6.0
"""For tests in which a job may lose its worker twice: a lease that a busy machine loses would count as the third time,
and so as poison."""
WAIT_S = 90.0

Arm = Callable[[int], str]
"""The failpoints of a process's n-th life, counted from 0."""


def once(failpoints: str) -> Arm:
    """Arm the first life and no other."""
    return lambda life: failpoints if life == 0 else ""


UNARMED = once("")


class Kept:
    """A process and its keeper. ``module`` is run with ``-m``; its log keeps the lines of every life."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        log: Path,
        env: dict[str, str],
        ready: str,
        arm: Arm = UNARMED,
        pause_s: float = PAUSE_S,
        restart: bool = True,
    ) -> None:
        self._argv = [sys.executable, "-m", module, *arguments]
        self._log = log
        self._env = env
        self._ready = ready
        self._arm = arm
        self._pause_s = pause_s
        self._restart = restart
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"keeper of {module}", daemon=True)
        self._child: Child | None = None
        self.exits: list[int] = []
        self.num_pauses = 0

    def start(self) -> "Kept":
        """Start the process; ``wait_ready`` waits for it."""
        self._thread.start()
        return self

    def wait_ready(self, num_lives: int = 1) -> "Kept":
        """Wait for its ``num_lives``-th ready event."""
        wait_for(lambda: len(self.events(self._ready)) >= num_lives, lambda: f"{self._ready} in {self.log()[-3000:]}")
        return self

    def stop(self) -> None:
        """End it, whatever state it is in."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(20)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the life that is under way."""
        assert self._child is not None
        self._child.send(number)

    @property
    def pid(self) -> int:
        """The process id of this life."""
        assert self._child is not None
        return self._child.pid

    def is_stopped(self) -> bool:
        """True while the process stands still, as after SIGSTOP."""
        return self._child is not None and _state(self._child.pid) == "T"

    def log(self) -> str:
        """Everything that it wrote."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def events(self, name: str, **fields: object) -> list[dict[str, Any]]:
        """The log lines of one event that have these fields."""
        # The last line may not be complete yet.
        complete = (line for line in self.log().splitlines(keepends=True) if line.endswith("\n"))
        lines = [json.loads(line) for line in complete if f'"{name}"' in line and line[0] == "{"]
        return [line for line in lines if line["event"] == name and fields.items() <= line.items()]

    def _keep(self) -> None:
        # The child is started here because it dies with the thread that started it.
        for life in count():
            self._child = Child(Command("kept", self._argv, self._log, env=self._environment(life), cwd=ROOT))
            while self._child.exit_code is None and not self._stopping.wait(0.03):
                if self._restart and self.is_stopped():
                    self._go_on_later()
            if self._stopping.is_set() or not self._restart:
                break
            self.exits.append(self._child.exit_code or 0)
        self._stopping.wait()
        self._child.kill()

    def _go_on_later(self) -> None:
        self.num_pauses += 1
        if not self._stopping.wait(self._pause_s):
            self.signal(signal.SIGCONT)

    def _environment(self, life: int) -> dict[str, str]:
        return self._env | {"HEADRACE_FAILPOINTS": self._arm(life)}


def _state(pid: int) -> str:
    """The kernel's letter for what a process is doing; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Stack:
    """One database and one Redis, the processes on them, and the submitting side."""

    def __init__(self, database_url: str, redis_url: str, folder: Path) -> None:
        self.folder = folder
        self.database_url = self.processes_url = database_url
        """The database, and by which address the processes reach it."""
        self._redis_url = redis_url
        self.db = Database(database_url, application_name="tests")
        self.tenant_id = api_keys.create_tenant(self.db, new_id("tenant"))
        self.key = api_keys.create_key(self.db, self.tenant_id, "tests", api_keys.SCOPES, actor="tests")
        self._kept: list[Kept] = []
        self._names = count(1)
        self._lock = threading.Lock()

    def environment(self, **changes: object) -> dict[str, str]:
        """The whole environment of a process of this stack."""
        values: dict[str, object] = {
            "environment": "test",
            "home": self.folder,
            "lease_s": LEASE_S,
            "sweep_s": SWEEP_S,
            "reannounce_s": 1,
            "drain_s": 1,
            "fake_step_ms": 5,
            "requests_per_minute": 1_000_000,
            "tokens_per_minute": 1_000_000_000,
            "webhook_allow_http": True,
            "webhook_allow_networks": "127.0.0.0/8",
        }
        named = {f"HEADRACE_{name.upper()}": str(value) for name, value in (values | changes).items()}
        services = {"DATABASE_URL": role_url(self.processes_url, WORKER), "REDIS_URL": self._redis_url}
        return {"PATH": os.defpath, "PYTHONUNBUFFERED": "1", **services, **named}

    def worker(
        self,
        model: str,
        *,
        arm: Arm = UNARMED,
        pause_s: float = PAUSE_S,
        extra: Mapping[str, str] = MappingProxyType({}),
        **changes: object,
    ) -> Kept:
        """Start a worker of ``model``; ``extra`` are variables that are no settings of ours."""
        env = {**self.environment(**changes), **extra}
        return self._keep("headrace.workers", "--model", model, env=env, ready="worker_ready", arm=arm, pause_s=pause_s)

    def dispatcher(self, *, arm: Arm = UNARMED, pause_s: float = PAUSE_S, **changes: object) -> Kept:
        """Start a dispatcher."""
        env = self.environment(**changes)
        return self._keep("headrace.workers.dispatcher", env=env, ready="dispatcher.leading", arm=arm, pause_s=pause_s)

    def api(self, *, arm: Arm = UNARMED, pause_s: float = PAUSE_S, **changes: object) -> tuple[Kept, Client]:
        """Start an API on a port that it keeps over its lives; return it with a client that has a key."""
        port = free_port()
        env = self.environment(api_port=port, **changes) | {"DATABASE_URL": role_url(self.processes_url, API)}
        kept = self._keep("headrace.producer_api", env=env, ready="api_started", arm=arm, pause_s=pause_s)
        return kept, Client(f"http://127.0.0.1:{port}", self.key)

    def _keep(self, module: str, *arguments: str, env: dict[str, str], ready: str, arm: Arm, pause_s: float) -> Kept:
        with self._lock:
            log = self.folder / f"{module}-{next(self._names)}.log"
            kept = Kept(module, *arguments, log=log, env=env, ready=ready, arm=arm, pause_s=pause_s)
            self._kept.append(kept)
        return kept.start()

    def register(self, model: str) -> ModelVersion:
        """Register the model without weights under this name."""
        return models.register_version(
            self.db,
            model=model,
            runner="fake",
            source="fake",
            digest="0" * 64,
            dtype="none",
            context_window=8192,
            files={},
            actor="tests",
        )

    def new_job(self, version: ModelVersion, prompt: str, max_tokens: int, **changes: Any) -> NewJob:
        """A job as the API would make it."""
        sampling = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True}
        values: dict[str, Any] = {
            "id": new_id("job"),
            "tenant_id": self.tenant_id,
            "task": "generate",
            "model": version.model,
            "model_version": version.version,
            "queue": queue_name(version.model, version.version),
            "service_class": ServiceClass.STANDARD,
            "priority": 5,
            "payload": {"input": {"prompt": prompt}, "sampling": sampling},
            "input_tokens": len(prompt),
            "cost_tokens": len(prompt) + max_tokens,
            "metadata": {},
            "webhook": None,
            "max_attempts": 3,
            "deadline_s": 3600.0,
            "idempotency": None,
            "announce": False,
        }
        return NewJob(**(values | changes))

    def accept(self, new: Sequence[NewJob]) -> list[str]:
        """Store jobs as an API does that dies before it rings the bell; return their ids."""
        outcomes = jobs.accept(self.db, new)
        assert all(isinstance(outcome, jobs.Accepted) for outcome in outcomes), outcomes
        return [job.id for job in new]

    def wipe_redis(self) -> None:
        """Forget every hint and every frame of this stack."""
        with connect(self._redis_url) as client:
            client.flushdb()

    def query(self, sql: str, **values: Any) -> list[Any]:
        """Look into the tables."""
        with self.db.begin() as connection:
            return list(connection.execute(text(sql), values))

    def wait_ended(self, job_ids: Sequence[str], timeout_s: float = WAIT_S) -> list[jobs.Job]:
        """Wait until every job is in a terminal state and return them."""

        def unfinished() -> list[Any]:
            return self.query(
                "SELECT id, state, attempt, crashes FROM jobs WHERE id = ANY(:ids) AND completed_at IS NULL",
                ids=list(job_ids),
            )

        wait_for(lambda: not unfinished(), lambda: f"these ended: {unfinished()[:5]}", timeout_s)
        return jobs.get_many(self.db, self.tenant_id, job_ids)

    def close(self) -> None:
        """End every process and drop the connections."""
        threads = [threading.Thread(target=kept.stop) for kept in self._kept]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.db.close()


class Databases:
    """Makes a new, migrated database for each stack on one server, with a Redis database of its own."""

    def __init__(self, server: Engine, redis_url: str) -> None:
        self._server = server
        self._redis_url = redis_url
        self._numbers = count(1)
        self._template = self._new("test_reliability_0")
        db = Database(self._url(self._template), pool_size=2, application_name="tests")
        upgrade(db)
        let_in(db, dict.fromkeys(ROLES, ROLE_PASSWORD))
        db.close()

    @contextmanager
    def stack(self, folder: Path, redis_url: str | None = None) -> Iterator[Stack]:
        """A stack with nothing running yet; its processes end and its database goes with the block.

        It has a database of the session's Redis, unless it brings a server of its own.
        """
        number = next(self._numbers)
        name = self._new(f"test_reliability_{number}", f"TEMPLATE {self._template}")
        redis_url = redis_url or with_redis_db(self._redis_url, number % 16)
        with connect(redis_url) as client:
            client.flushdb()
        home = folder / name
        home.mkdir()
        stack = Stack(self._url(name), redis_url, home)
        try:
            yield stack
        finally:
            stack.close()
            self._drop(name)

    def close(self) -> None:
        """Drop what the stacks were copied from."""
        self._drop(self._template)

    def _new(self, name: str, like: str = "") -> str:
        self._drop(name)
        self._do(f"CREATE DATABASE {name} {like}")
        return name

    def _drop(self, name: str) -> None:
        self._do(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _do(self, statement: str) -> None:
        with self._server.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text(statement))

    def _url(self, name: str) -> str:
        return self._server.url.set(database=name).render_as_string(hide_password=False)


def with_redis_db(url: str, number: int) -> str:
    """Return the address of another database of the same Redis."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}?db={number}"
    return urlunsplit(parts._replace(path=f"/{number}"))

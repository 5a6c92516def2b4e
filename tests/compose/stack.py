"""The Compose stack as an operator starts it, with a second API, two workers of the fake model and a small disk."""

import copy
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import yaml
from sqlalchemy import text

from headrace.store.child_process import Child, Command
from headrace.store.db.database import Database
from headrace.store.ports import free_port
from headrace.store.settings import child_environment
from headrace.store.tenants.api_keys import SCOPES, create_key, create_tenant
from tests.chaos.cluster import Tenant
from tests.chaos.journal import Journal
from tests.compose.engine import Engine, EngineError, Inspected
from tests.compose.images import DEPLOY, ROOT

PROJECT = "headrace-check"
DISK_BYTES = 1 << 30
READY_S = 400.0
_POSTGRES_USER = 999
_LOOK_S = 0.5
_SECRET = text("SELECT webhook_secret FROM tenants WHERE id = :id")

APIS = ("api", "api-2")
FAKE_WORKERS = ("worker-fake", "worker-fake-2")
LASTING = ("postgres", "valkey", *APIS, "dispatcher", "worker", *FAKE_WORKERS, "flower")
"""Every service that runs until it is stopped."""
ONCE = ("migrate", "register", "register-fake")
"""Those that end before the others start."""


class Stack:
    """It, in ``folder``; ``address`` is the engine's socket."""

    def __init__(
        self, engine: Engine, address: str, folder: Path, journal: Journal, say: Callable[[str], None]
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.journal = journal
        self.tenants: list[Tenant] = []
        self.hook_base = ""
        self._say = say
        self._address = address
        self._override = folder / "override.yaml"
        self._disk = folder / "disk"
        self._receiver: Child | None = None
        self._ports = {name: free_port("127.0.0.1", 0) for name in (*APIS, "flower")}
        names = ("POSTGRES_PASSWORD", "API_DATABASE_PASSWORD", "WORKER_DATABASE_PASSWORD", "OPERATOR_DATABASE_PASSWORD")
        self._given = {name: secrets.token_urlsafe(12) for name in names} | {
            "FLOWER_BASIC_AUTH": "flower:" + secrets.token_urlsafe(12),
            "HEADRACE_MODELS": str(folder / "models"),
            "MODEL": "tiny",
            "API_PORT": str(self._ports["api"]),
            "FLOWER_PORT": str(self._ports["flower"]),
        }

    # -- starting and ending ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything; return when every health check is content. Raises EngineError."""
        self.end()
        self._make_disk()
        self._override.write_text(yaml.safe_dump(self._added(), sort_keys=False))
        began = time.monotonic()
        self.compose("up", "-d", "--no-build", timeout_s=900)
        self.wait_healthy(LASTING, READY_S)
        self._say(f"{len(LASTING)} containers healthy after {time.monotonic() - began:.0f} s")
        self._make_tenants()
        self._start_receiver()

    def end(self) -> None:
        """Remove the containers, networks, volumes and the disk, also those of a run that was killed."""
        if self._receiver is not None:
            self._receiver.kill()
        ours = f"label=com.docker.compose.project={PROJECT}"
        # External: names that a killed podman took for containers that it had not made yet.
        for one in self.engine.run("ps", "-aq", "--external", "--filter", f"name=^{PROJECT}-").split():
            self.engine.run("rm", "-f", "-t", "0", one)
        for kind in ("volume", "network"):
            for one in self.engine.run(kind, "ls", "-q", "--filter", ours).split():
                self.engine.run(kind, "rm", "-f", one)
        subprocess.run(["umount", "-l", self._disk], capture_output=True, check=False)

    def compose(self, *argv: str, timeout_s: float = 300.0) -> str:
        """Return what ``docker compose argv`` writes. Raises EngineError."""
        files = ["-f", str(DEPLOY / "compose.yaml"), "-f", str(self._override)]
        command = ["docker-compose", "-p", PROJECT, *files, *argv]
        env = {**self.engine.env, **self._given, "DOCKER_HOST": self._address}
        with checking_health(self.engine):
            done = subprocess.run(
                command,
                env=env,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        with (self.folder / "compose.log").open("a") as log:
            log.write(f"$ compose {' '.join(argv)}\n{done.stdout}{done.stderr}\n")
        if done.returncode != 0:
            raise EngineError(f"compose {' '.join(argv)}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done.stdout

    def _added(self) -> dict[str, Any]:
        services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
        # The receiver is on this machine and without TLS.
        hooks = {"HEADRACE_WEBHOOK_ALLOW_HTTP": "true", "HEADRACE_WEBHOOK_ALLOW_NETWORKS": "10.0.0.0/8"}
        limits = {"HEADRACE_REQUESTS_PER_MINUTE": "1000000", "HEADRACE_TOKENS_PER_MINUTE": "1000000000"}
        second = self._copy(services["api"])
        second["ports"] = [f"127.0.0.1:{self._ports['api-2']}:8000"]
        second["environment"] |= hooks | limits
        added: dict[str, Any] = {
            "api": {"environment": hooks | limits},
            "api-2": second,
            "dispatcher": {"environment": hooks},
            "register-fake": self._copy(services["register"])
            | {"command": ["python", "-m", "headrace.models.catalog", "register", "fake", "fake"]},
        }
        for name in FAKE_WORKERS:
            worker = self._copy(services["worker"])
            worker["command"] = ["python", "-m", "headrace.workers", "--model", "fake"]
            worker["environment"]["HEADRACE_FAKE_STEP_MS"] = "20"
            worker["depends_on"]["register-fake"] = worker["depends_on"].pop("register")
            added[name] = worker
        device = {
            "driver": "local",
            "driver_opts": {"type": "none", "o": "bind", "device": str(self._disk / "postgres")},
        }
        return {"services": added, "volumes": {"postgres": device}}

    @staticmethod
    def _copy(service: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in copy.deepcopy(service).items() if name != "build"}

    def _make_disk(self) -> None:
        """A file system of its own for Postgres, small enough to be filled."""
        image = self.folder / "disk.img"
        image.unlink(missing_ok=True)
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        self._disk.mkdir(exist_ok=True)
        for argv in (["mkfs.ext4", "-q", "-m", "0", str(image)], ["mount", "-o", "loop", str(image), str(self._disk)]):
            subprocess.run(argv, check=True, capture_output=True)
        data = self._disk / "postgres"
        data.mkdir()
        os.chown(data, _POSTGRES_USER, _POSTGRES_USER)

    def fill_disk(self) -> None:
        """Leave no byte on Postgres's disk."""
        stat = os.statvfs(self._disk)
        with (self._disk / "filler").open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize)
            except OSError:
                while True:
                    try:
                        file.write(b"\0" * 65536)
                        file.flush()
                    except OSError:
                        break

    def free_disk(self) -> None:
        """Make room again."""
        (self._disk / "filler").unlink(missing_ok=True)

    def _make_tenants(self) -> None:
        db = Database(self.database_url, pool_size=1, application_name="containers setup")
        try:
            for name in ("amber", "birch", "cedar"):
                tenant_id = create_tenant(db, name)
                key = create_key(db, tenant_id, "containers", SCOPES, actor="containers")
                with db.autocommit(tenant_id=tenant_id) as connection:
                    secret = connection.execute(_SECRET, {"id": tenant_id}).scalar_one()
                self.tenants.append(Tenant(tenant_id, key, secret))
        finally:
            db.close()

    def _start_receiver(self) -> None:
        network = f"{PROJECT}_outside"
        gateway = self.engine.run("network", "inspect", network, "--format", "{{range .Subnets}}{{.Gateway}}{{end}}")
        port = free_port("127.0.0.1", 0)
        argv: list[str | Path] = [sys.executable, "-m", "tests.chaos.receiver", str(port), self.folder / "hooks.jsonl"]
        argv += [json.dumps([one.webhook_secret for one in self.tenants]), gateway]
        log = self.folder / "logs" / "receiver.log"
        log.parent.mkdir(exist_ok=True)
        self._receiver = Child(Command("receiver", argv, log, env=child_environment({}), cwd=ROOT))
        self.hook_base = f"http://{gateway}:{port}"

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def api_urls(self) -> list[str]:
        """The APIs' addresses on this machine, by their published ports."""
        return [f"http://127.0.0.1:{self._ports[name]}" for name in APIS]

    @property
    def database(self) -> dict[str, Any]:
        """psycopg's parameters for Postgres's owner."""
        address = next(iter(self.inspect("postgres").addresses.values()))
        return {"host": address, "user": "headrace", "dbname": "headrace", "password": self._given["POSTGRES_PASSWORD"]}

    @property
    def database_url(self) -> str:
        """The same as an address."""
        given = self.database
        return f"postgresql+psycopg://{given['user']}:{given['password']}@{given['host']}:5432/{given['dbname']}"

    def ask(self, statement: str) -> list[Any]:
        """The rows of a statement. Raises psycopg.Error."""
        with psycopg.connect(**self.database, connect_timeout=5) as connection:
            return connection.execute(statement).fetchall()

    @staticmethod
    def container(service: str) -> str:
        """The name of a service's container."""
        return f"{PROJECT}-{service}-1"

    def inspect(self, service: str) -> Inspected:
        """What the engine tells of it."""
        return self.engine.inspect(self.container(service))

    def pids(self, service: str) -> list[int]:
        """Its processes on this machine."""
        return [int(pid) for pid in self.engine.run("top", self.container(service), "hpid").split()[1:]]

    def wait_healthy(self, services: tuple[str, ...], timeout_s: float) -> float:
        """Return the seconds until all run and their checks are content. Raises EngineError."""
        began = time.monotonic()
        waiting = list(services)
        while waiting:
            for name in list(waiting):
                try:
                    found = self.inspect(name)
                    if found.status == "running" and self.is_content(name):
                        waiting.remove(name)
                except EngineError:
                    continue
            if waiting and time.monotonic() - began > timeout_s:
                raise EngineError(f"not healthy after {timeout_s:.0f} s: {', '.join(waiting)}: {self.tail(waiting[0])}")
            time.sleep(_LOOK_S)
        return time.monotonic() - began

    def is_content(self, service: str) -> bool:
        """Run its own health check once: without systemd no one else does."""
        argv = ["podman", "healthcheck", "run", self.container(service)]
        try:
            done = subprocess.run(argv, env=self.engine.env, capture_output=True, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def tail(self, service: str) -> str:
        """The end of what it wrote."""
        done = subprocess.run(
            ["podman", "logs", "--tail", "20", self.container(service)],
            env=self.engine.env,
            capture_output=True,
            check=False,
        )
        return (done.stdout + done.stderr).decode(errors="replace")[-2000:]

    def keep_log(self, service: str) -> None:
        """Add what a container wrote to the logs of this run, before it is removed."""
        argv = ["podman", "logs", self.container(service)]
        log = self.folder / "logs" / f"{service}.log"
        with log.open("ab") as out:
            subprocess.run(argv, env=self.engine.env, stdout=out, stderr=out, check=False)

    def first_key(self) -> str:
        """A key as the head of compose.yaml makes it."""
        out = self.compose("run", "--rm", "operator", "headrace", "keys", "create", "admin", "--json")
        return str(yaml.safe_load(out[out.index("{") : out.rindex("}") + 1])["value"])

    def kernels(self) -> list[str]:
        """The files of the kernels that the worker of the tiny model compiled."""
        return self.engine.run("exec", self.container("worker"), "ls", "/var/lib/headrace/native").split()


class checking_health:  # noqa: N801 - used as a function
    """Runs every health check now and then: podman leaves that to systemd, which not every machine has."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        if not Path("/run/systemd/system").exists():
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(1.0):
            try:
                names = self._engine.run(
                    "ps", "--filter", f"label=com.docker.compose.project={PROJECT}", "--filter", "health=starting",
                    "--format", "{{.Names}}",
                ).split()  # fmt: skip
            except EngineError:
                continue
            for name in names:
                if self._over.is_set():
                    return
                argv = ["podman", "healthcheck", "run", name]
                subprocess.run(argv, env=self._engine.env, capture_output=True, check=False)

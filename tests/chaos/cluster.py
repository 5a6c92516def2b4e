"""A small Headrace of real processes: APIs, workers, dispatchers, Postgres, Valkey, each pair joined by a fault proxy.

It starts, finds, signals and restarts them; an ended process is started again, as by an orchestrator. All of this runs
on one thread, the one that lives longest, because the kernel kills the children when their parent thread ends.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from sqlalchemy import text

from headrace.cli.local.folders import socket_folder, unprivileged_user
from headrace.cli.local.postgres import LocalPostgres
from headrace.cli.local.process import run_step
from headrace.cli.local.valkey import LocalValkey
from headrace.store.child_process import Child, Command, descendants
from headrace.store.db.database import Database
from headrace.store.db.roles import API, WORKER
from headrace.store.ports import free_port
from headrace.store.settings import child_environment
from headrace.store.tenants.api_keys import SCOPES, create_key, create_tenant
from tests.chaos.journal import Journal
from tests.chaos.proxy import FaultProxy, ProxyThread
from tests.folders import reachable_folder

ROOT = Path(__file__).parents[2]
READY_S = 120.0
RESTART_PAUSE_S = 0.5
TMPFS_BYTES = 4 << 30
HOST_MEMORY = "520MiB"

MARKS = {"exit": "##exit##", "hang": "##hang##", "raise": "##raise##", "oom": "##oom##", "nan": "##nan##"}
"""Marks in a prompt that trigger this fault in its engine step."""

# Without them a worker of the previous release ignores the marks, and so serves for as long as its strike lasts.
_NOT_FOR_OLD = {"HEADRACE_ENVIRONMENT", "HEADRACE_MODEL_FAULTS"}

SHORT_TIMES = {
    "LEASE_S": "3",
    "SWEEP_S": "0.5",
    "REANNOUNCE_S": "2",
    "DRAIN_S": "1",
    "MAX_STEP_S": "4",
    "STREAM_PING_S": "2",
    "WEBHOOK_TIMEOUT_S": "4",
    "FAKE_STEP_MS": "20",
}


@dataclass(frozen=True)
class Shape:
    """Numbers of processes, and settings that differ from the defaults. ``path``: PYTHONPATH of all of them."""

    apis: int = 2
    workers: int = 2
    dispatchers: int = 2
    settings: Mapping[str, str] = field(default_factory=lambda: SHORT_TIMES)
    has_marks: bool = True
    has_private_mounts: bool = False
    path: str = ""


@dataclass(frozen=True)
class Tenant:
    """A customer: tenant, API key and webhook secret."""

    id: str
    key: str
    webhook_secret: str


class Member:
    """One process of ours. ``keep`` False: it is not started again when it ends."""

    def __init__(self, kind: str, name: str, port: int, command: Callable[[Mapping[str, str]], Command]) -> None:
        self.kind = kind
        self.name = name
        self.port = port
        self.keep = True
        self.extra: dict[str, str] = {}
        self.child: Child | None = None
        self.restart_at: float | None = None
        self.proxies: dict[str, FaultProxy] = {}
        self._command = command

    @property
    def pid(self) -> int:
        """The current process id; 0 before the first start."""
        return 0 if self.child is None else self.child.pid

    @property
    def is_alive(self) -> bool:
        """True while the process runs, stopped or not."""
        return self.child is not None and self.child.exit_code is None

    @property
    def is_stopped(self) -> bool:
        """True if a SIGSTOP holds it."""
        if self.child is None:
            return False
        try:
            return Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except OSError:
            return False

    def start(self) -> None:
        """Start it."""
        self.child = Child(self._command(self.extra))


# By SQL, because the store of webhooks may be left out (``make pluck``).
_SECRET = text("SELECT webhook_secret FROM tenants WHERE id = :id")


class Cluster:
    """The running processes, created by ``running_cluster``."""

    def __init__(self, folder: Path, shape: Shape, journal: Journal) -> None:
        self.folder = folder
        self.shape = shape
        self.journal = journal
        self.members: list[Member] = []
        self.tenants: list[Tenant] = []
        self.helpers: list[Child] = []
        self.proxies = ProxyThread()
        pg = folder / "pg"
        self.is_on_tmpfs = shape.has_private_mounts and mount_tmpfs(pg, TMPFS_BYTES)
        self.postgres = LocalPostgres(pg, folder / "postgres.log")
        self.valkey = LocalValkey(folder / "kv", folder / "valkey.log")
        owner = unprivileged_user()
        self._pg_socket = str(socket_folder(pg.absolute(), ".s.PGSQL.5432", owner) / ".s.PGSQL.5432")
        self.servers_kept = {"postgres": True, "redis": True}

    # -- starting -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything; return when all APIs are ready and all workers serve."""
        self.postgres.start()
        self.valkey.start()
        self._prepare()
        for kind, count in (("dispatcher", self.shape.dispatchers), ("worker", self.shape.workers)):
            for n in range(count):
                self.add(kind, f"{kind}-{n + 1}")
        for n in range(self.shape.apis):
            self.add("api", f"api-{n + 1}")
        self.wait_ready()

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Return when every process runs and serves. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while waiting := [one.name for one in self.members if one.keep and not self.is_ready(one)]:
            self.tend()
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready after {timeout_s:.0f} s: {', '.join(waiting)} (logs in {self.folder})")
            time.sleep(0.1)

    def _prepare(self) -> None:
        env = child_environment({"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url})
        log = self.folder / "logs" / "prepare.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        for arguments in (["headrace.migrations", "roles"], ["headrace.models.catalog", "register", "fake", "fake"]):
            if run_step([sys.executable, "-m", *arguments], env, log) != 0:
                raise RuntimeError(f"{arguments} failed: {log.read_text()[-2000:]}")
        db = Database(self.database_url, pool_size=1, application_name="chaos setup")
        try:
            for name in ("amber", "birch", "cedar"):
                tenant_id = create_tenant(db, name)
                key = create_key(db, tenant_id, "chaos", SCOPES, actor="chaos")
                with db.autocommit(tenant_id=tenant_id) as connection:
                    secret = connection.execute(_SECRET, {"id": tenant_id}).scalar_one()
                self.tenants.append(Tenant(tenant_id, key, secret))
        finally:
            db.close()

    def add(
        self, kind: str, name: str, *, root: Path = ROOT, is_old: bool = False, model: str = "fake", **extra: str
    ) -> Member:
        """Start a process of ``kind`` behind proxies of its own; ``root`` holds its code (any release).

        ``model``: what a worker serves, or a host, which has room for two workers of the fake model.
        ``extra``: settings that differ from those of the shape.
        """
        port = free_port("127.0.0.1", 0)
        proxies = self._proxies_of(name)
        module = {
            "api": ["headrace.producer_api"],
            "dispatcher": ["headrace.workers.dispatcher"],
            "host": ["headrace.features.hosts", "--memory", HOST_MEMORY, "--models", model, "--name", name],
        }.get(kind, ["headrace.workers", "--model", model, "--name", name])
        env = self._environment(kind, port, proxies)
        if is_old:
            env = {name: value for name, value in env.items() if name not in _NOT_FOR_OLD}

        def command(extra: Mapping[str, str]) -> Command:
            argv: list[str | Path] = [sys.executable, "-m", *module]
            return Command(name, argv, self.log_of(name), env={**env, **extra}, cwd=root)

        member = Member(kind, name, port, command)
        member.proxies = proxies
        member.extra = {f"HEADRACE_{name.upper()}": value for name, value in extra.items()}
        self.members.append(member)
        member.start()
        return member

    def _environment(self, kind: str, port: int, proxies: Mapping[str, FaultProxy]) -> dict[str, str]:
        env = {name: value for name, value in child_environment({}).items() if not name.startswith("HEADRACE_")}
        env |= self._addresses(API if kind == "api" else WORKER, proxies)
        env |= {f"HEADRACE_{name}": value for name, value in self.shape.settings.items()}
        env |= {
            "HEADRACE_HOME": str(self.folder),
            "HEADRACE_REQUESTS_PER_MINUTE": "1000000",
            "HEADRACE_TOKENS_PER_MINUTE": "1000000000",
            "HEADRACE_WEBHOOK_ALLOW_HTTP": "true",
            "HEADRACE_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
            "PYTHONUNBUFFERED": "1",
        }
        if self.shape.path:
            env["PYTHONPATH"] = self.shape.path
        if kind == "api":
            env["HEADRACE_API_PORT"] = str(port)
        if kind == "worker":
            env["HEADRACE_WORKER_METRICS_PORT"] = str(port)
        if kind == "dispatcher":
            env["HEADRACE_DISPATCHER_PORT"] = str(port)
        if kind == "host":
            env["HEADRACE_HOST_PORT"] = str(port)
        if self.shape.has_marks:
            env["HEADRACE_ENVIRONMENT"] = "test"
            env["HEADRACE_MODEL_FAULTS"] = ",".join(f"{fault}:{mark}" for fault, mark in MARKS.items())
        return env

    def _proxies_of(self, name: str) -> dict[str, FaultProxy]:
        upstreams = {"postgres": self._pg_socket, "redis": self._valkey_socket}
        return {server: self.proxies.add(f"{name}>{server}", socket) for server, socket in upstreams.items()}

    def _addresses(self, role: str, proxies: Mapping[str, FaultProxy]) -> dict[str, str]:
        pg = f"postgresql+psycopg://{role}@127.0.0.1:{proxies['postgres'].port}/postgres?sslmode=disable"
        return {"DATABASE_URL": pg, "REDIS_URL": f"redis://127.0.0.1:{proxies['redis'].port}/0"}

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def database_url(self) -> str:
        """Postgres itself, past every proxy."""
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        """Valkey itself, past every proxy."""
        return self.valkey.url

    @property
    def _valkey_socket(self) -> str:
        return self.valkey.url.removeprefix("unix://").partition("?")[0]

    @property
    def api_urls(self) -> list[str]:
        """Addresses of the APIs, running or not."""
        return [f"http://127.0.0.1:{one.port}" for one in self.of_kind("api")]

    def of_kind(self, kind: str) -> list[Member]:
        """The members of a kind."""
        return [one for one in self.members if one.kind == kind]

    def find(self, name: str) -> Member:
        """The member called ``name``."""
        return next(one for one in self.members if one.name == name)

    def log_of(self, name: str) -> Path:
        """The log of a member, across restarts."""
        return self.folder / "logs" / f"{name}.log"

    def is_ready(self, member: Member) -> bool:
        """True if it serves; a dispatcher is ready when it runs."""
        if not member.is_alive:
            return False
        if member.kind == "dispatcher":
            return True
        path = "/readyz" if member.kind == "api" else "/metrics"
        try:
            url = f"http://127.0.0.1:{member.port}{path}"
            return httpx2.get(url, timeout=2, trust_env=False).status_code == httpx2.codes.OK
        except httpx2.TransportError:
            return False

    # -- keeping alive ------------------------------------------------------------------------------------------------

    def tend(self) -> None:
        """Record ended processes and restart them after a moment. Call often."""
        now = time.monotonic()
        for member in self.members:
            if member.child is None:
                continue
            if member.restart_at is None and not member.is_alive:
                self.journal.write(
                    "exit", member=member.kind, name=member.name, pid=member.child.pid, code=member.child.exit_code
                )
                member.restart_at = now + RESTART_PAUSE_S
            if member.restart_at is not None and member.keep and now >= member.restart_at:
                member.restart_at = None
                member.start()
        self._tend_servers()

    def _tend_servers(self) -> None:
        """Restart a server that died of a fault (a full disk) as soon as possible."""
        for name, server in (("postgres", self.postgres), ("redis", self.valkey)):
            child = server.child
            if self.servers_kept[name] and child is not None and child.exit_code is not None:
                self.journal.write("exit", member=name, name=name, pid=child.pid, code=child.exit_code)
                try:
                    server.start(timeout_s=30)
                except Exception as error:  # noqa: BLE001 - the disk may still be full: the next turn tries again
                    self.journal.write("server_down", name=name, error=str(error)[:200])

    def signal(self, member: Member, number: signal.Signals) -> bool:
        """Send a signal to a living member; False if it has ended."""
        if not member.is_alive or member.child is None:
            return False
        member.child.send(number)
        self.journal.write("signal", member=member.kind, name=member.name, pid=member.child.pid, signal=number.name)
        return True

    def kill(self, name: str) -> None:
        """Kill a member with its children, or the server ``postgres`` or ``redis``; ``tend`` starts it again."""
        if name in {"postgres", "redis"}:
            pids = self.server_pids(name)[:1]
        else:
            pid = self.find(name).pid
            pids = [pid, *sorted(descendants(pid))]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.journal.write("kill", name=name)

    def server_pids(self, name: str) -> list[int]:
        """The server's process and everything below it."""
        child = (self.postgres if name == "postgres" else self.valkey).child
        return [child.pid, *sorted(descendants(child.pid))] if child is not None else []

    def limit_disk(self, *, is_full: bool) -> bool:
        """Fill or free Postgres's disk: its own tmpfs, or else a limit of file sizes.

        Returns False if the machine allows neither.
        """
        if self.is_on_tmpfs:
            stat = os.statvfs(self.folder / "pg")
            used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
            size = used if is_full else TMPFS_BYTES
            return _mount("-o", f"remount,size={size}", str(self.folder / "pg"))
        most = 8192 if is_full else resource.RLIM_INFINITY
        try:
            for pid in self.server_pids("postgres"):
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        except PermissionError:
            return False
        return True

    def stop(self) -> None:
        """Kill all processes in any state."""
        for child in [one.child for one in self.members] + self.helpers:
            if child is not None:
                child.kill()
        for pid in [*self.server_pids("redis"), *self.server_pids("postgres")]:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue
        self.valkey.stop()
        self.postgres.stop()
        self.proxies.stop()
        if self.is_on_tmpfs:
            _mount("-l", str(self.folder / "pg"), program="umount")


@contextmanager
def running_cluster(
    shape: Shape, journal_name: str = "nemesis.jsonl", keep_logs: Path | None = None, kind: type[Cluster] = Cluster
) -> Iterator[Cluster]:
    """Yield a cluster that serves, in a folder of its own; the logs are left in ``keep_logs``."""
    with ExitStack() as cleanup:
        folder = cleanup.enter_context(reachable_folder())
        journal = Journal(folder / journal_name)
        cleanup.callback(journal.close)
        cluster = kind(folder, shape, journal)
        cleanup.callback(_keep, folder, keep_logs)
        cleanup.callback(cluster.stop)
        cluster.start()
        yield cluster


def _keep(folder: Path, target: Path | None) -> None:
    """Copy logs and journals out of a folder before its deletion."""
    if target is None:
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("logs/*.log"), *folder.glob("*.log"), *folder.glob("*.jsonl")]:
        (target / path.name).write_bytes(path.read_bytes())


def mount_tmpfs(folder: Path, num_bytes: int) -> bool:
    """Mount a small file system; return True on success. Needs a private mount namespace."""
    folder.mkdir(parents=True, exist_ok=True)
    return _mount("-t", "tmpfs", "-o", f"size={num_bytes},mode=0755", "chaos", str(folder))


def _mount(*arguments: str, program: str = "mount") -> bool:
    return subprocess.run([program, *arguments], check=False, capture_output=True).returncode == 0

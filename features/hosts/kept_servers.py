"""The inference servers of a host that sleep while their versions have no place (vLLM's sleep mode).

    a place:     start the server, or let the worker wake it ──▶ the worker connects ──▶ jobs
    no place:    the worker drains and ends ──▶ the server sleeps, or ends if it does not fit

A server sleeps only after its worker has ended, so no request is in flight. The next worker wakes it before it
connects. A server that dies in its sleep is started anew with the next place.
"""

import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

import structlog

from headrace.features.hosts.version_needs import used_memory
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError
from headrace.store.hosts.hosted_versions import HostedVersion
from headrace.store.ports import free_port
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.registry.models import ModelVersion, resolve
from headrace.store.settings import Settings
from headrace.workers.server_command import HOST, server_argv, server_environment
from headrace.workers.server_process import ServerProcess, server_log
from headrace.workers.server_sleep import fall_asleep

log = structlog.get_logger(__name__)

_NOT_SUPPORTED: Final = "leep mode is not supported"
"""What vLLM says at its start on a platform without sleep mode, such as its CPU build."""

_END_S = 30.0


class ServerState(StrEnum):
    """``ended``: it could not start, did not sleep, or was ended."""

    UP = "up"
    FALLING_ASLEEP = "falling asleep"
    ASLEEP = "asleep"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a worker finds the server that the host keeps for it, and the key to show."""

    url: str
    api_key: str


class KeptServer:
    """One server, in a thread of its own: the kernel ends what a thread has started together with the thread."""

    def __init__(self, make: Callable[[int, str], ServerProcess]) -> None:
        self._port = free_port(HOST, 0)
        self._key = secrets.token_urlsafe(24)
        self._make = make
        self._server: ServerProcess | None = None
        self._orders: queue.SimpleQueue[ServerState] = queue.SimpleQueue()
        self.state = ServerState.UP
        self.failure: str | None = None
        self.used_bytes = 0
        self.asleep_since = 0.0
        self._thread = threading.Thread(target=self._run, name="kept-server", daemon=True)
        self._thread.start()

    @property
    def address(self) -> ServerAddress:
        """Where it listens."""
        return ServerAddress(f"http://{HOST}:{self._port}", self._key)

    @property
    def pid(self) -> int | None:
        """The process id of its guard, None before it was started and after its end."""
        return None if self._server is None else self._server.pid

    @property
    def is_settled(self) -> bool:
        """True while it sleeps, and after its end: it needs its place no more."""
        return self.state is ServerState.ASLEEP or not self._thread.is_alive()

    def use(self) -> None:
        """Expect a worker, which wakes it. One that has died is started again."""
        self.state = ServerState.UP
        if self._server is not None:
            self._server.go_on()

    def sleep(self) -> None:
        """Let it sleep, without waiting for it."""
        self.state = ServerState.FALLING_ASLEEP
        self._orders.put(ServerState.ASLEEP)

    def end(self) -> None:
        """End it, without waiting for it."""
        self.state = ServerState.ENDING
        if self._server is not None:
            self._server.ask_to_stop()
        self._orders.put(ServerState.ENDED)

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(_END_S)

    def _run(self) -> None:
        try:
            self._server = self._make(self._port, self._key)
            if self.state is not ServerState.ENDING:
                self._server.start()
                while self._orders.get() is not ServerState.ENDED and self._sleeps(self._server):
                    pass
            self._server.stop()
        except HeadraceError as error:
            if self.state is not ServerState.ENDING:
                self.failure = error.message
        self.state = ServerState.ENDED

    def _sleeps(self, server: ServerProcess) -> bool:
        """Let the server sleep; return False if it does not."""
        try:
            server.rest()
            fall_asleep(HOST, self._port, self._key)
        except (HeadraceError, OSError) as error:
            log.warning("server_does_not_sleep", error=str(error))
            return False
        self.used_bytes = used_memory(self.pid) if self.pid else 0
        self.asleep_since = time.monotonic()
        if self.state is ServerState.FALLING_ASLEEP:
            self.state = ServerState.ASLEEP
        return True


class KeptServers:
    """All of a host. ``budget_bytes``: main memory for those that sleep; 0: no server is kept."""

    def __init__(self, settings: Settings, db: Database, budget_bytes: int) -> None:
        self._settings = settings
        self._db = db
        self._budget_bytes = budget_bytes
        self._servers: dict[str, KeptServer] = {}
        self._cannot: set[str] = set()

    def keeps(self, version: HostedVersion) -> bool:
        """Return True if the host starts this version's server and may let it sleep."""
        engine = version.engine
        is_vllm = engine is not None and engine.kind is EngineKind.VLLM and engine.url is None
        return self._budget_bytes > 0 and is_vllm and version.queue not in self._cannot

    def address_for(self, version: HostedVersion) -> ServerAddress:
        """Return the address of a version's server, which is started if there is none. Raises HeadraceError."""
        known = self._servers.get(version.queue)
        if known is not None and known.state is ServerState.ASLEEP:
            known.use()
            return known.address
        found = resolve(self._db, version.queue, with_retired=True)
        made = self._servers[version.queue] = KeptServer(partial(self._make, version.queue, found))
        return made.address

    def rests(self, queue: str, *, may_sleep: bool, weights: int = 0) -> bool:
        """Let the server of a worker that has ended sleep, or end it; return True when that is done.

        ``weights``: bytes that come to main memory when it sleeps. Call it again until it returns True.
        """
        server = self._servers.get(queue)
        if server is None:
            return True
        if server.state is ServerState.UP:
            coming = weights + (used_memory(server.pid) if server.pid else 0)
            leaving = to_end(self._sleeping(), coming, self._budget_bytes) if may_sleep else None
            for other in leaving or ():
                self._servers[other].end()
            if leaving is None or server.failure is not None:
                server.end()
            else:
                server.sleep()
        if not server.is_settled:
            return False
        if server.state is not ServerState.ASLEEP:
            del self._servers[queue]
        return True

    def failure(self, queue: str) -> str | None:
        """Return why the server of a version could not start; a version whose platform has no sleep mode is noted."""
        server = self._servers.get(queue)
        if server is None or server.failure is None or server.state is ServerState.ENDING:
            return None
        if _NOT_SUPPORTED in server.failure:
            self._cannot.add(queue)
        return server.failure

    def used(self, queue: str) -> int:
        """Return the memory of the server of a version with a place."""
        server = self._servers.get(queue)
        return used_memory(server.pid) if server is not None and server.pid else 0

    def tend(self, known: Iterable[str]) -> None:
        """End the servers that sleep for versions which are not ``known`` any more. Forget those that have ended."""
        for queue_, server in list(self._servers.items()):
            if server.state is ServerState.ASLEEP and (queue_ not in known or server.pid is None):
                server.end()
            if server.state is ServerState.ENDED:
                del self._servers[queue_]

    @property
    def asleep(self) -> tuple[str, ...]:
        """The versions whose servers sleep, by name."""
        return tuple(sorted(self._sleeping()))

    def keep_none(self) -> None:
        """Let no server sleep from now on: the host ends."""
        self._budget_bytes = 0

    def close(self) -> None:
        """End all servers, and wait for it."""
        for server in self._servers.values():
            server.end()
        for server in self._servers.values():
            server.join()

    def _sleeping(self) -> dict[str, tuple[float, int]]:
        return {
            name: (server.asleep_since, server.used_bytes)
            for name, server in self._servers.items()
            if server.state is ServerState.ASLEEP
        }

    def _make(self, name: str, version: ModelVersion, port: int, api_key: str) -> ServerProcess:
        return ServerProcess(
            name,
            server_argv(version, self._settings, port=port, arguments=(), can_sleep=True),
            server_environment(version.engine, api_key, can_sleep=True),
            server_log(self._settings.home.absolute() / "logs", name.replace("@", "."), os.getpid()),
            HOST,
            port,
        )


def to_end(asleep: Mapping[str, tuple[float, int]], coming_bytes: int, budget_bytes: int) -> list[str] | None:
    """Return which servers must end so that one more can sleep, the longest asleep first; None if it never fits.

    ``asleep``: by version, since when it sleeps and its memory.
    """
    if coming_bytes > budget_bytes:
        return None
    left = budget_bytes - coming_bytes - sum(num_bytes for _, num_bytes in asleep.values())
    ending = []
    for name, (_, num_bytes) in sorted(asleep.items(), key=lambda item: item[1][0]):
        if left >= 0:
            break
        ending.append(name)
        left += num_bytes
    return ending

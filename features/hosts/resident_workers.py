"""The worker processes of a host: ordinary workers of one version each, which drain when they are asked to stop.

A worker gets SIGTERM when the host dies, so it hands its jobs back and ends; none outlives the host for longer than a
drain. The next host of the same name waits for those that still drain.
"""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from headrace.features.hosts.kept_servers import ServerAddress
from headrace.store.child_process import Child, Command, last_line, still_alive
from headrace.store.hosts.host_reports import PlaceState
from headrace.store.ports import free_port
from headrace.store.settings import Settings, child_environment

_ASK_S = 1.0
_OK = 200
LOOK_S = 0.1
_GRACE_S = 20.0
"""A worker, and an inference server of its own, may take so long to end after the drain."""


class ResidentWorker:
    """One worker process. ``start_limit_s``: a worker that is not ready after so long is killed.

    ``number``: of several workers of a queue; such a one has the time to drain of ``settings``. ``server``: the
    inference server that the host keeps for the version.
    """

    def __init__(
        self,
        settings: Settings,
        host: str,
        queue: str,
        *,
        start_limit_s: float,
        number: int | None = None,
        server: ServerAddress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = queue
        self._clock = clock
        self._start_limit_s = start_limit_s
        self._stop_limit_s = settings.drain_s + _GRACE_S
        self._port = free_port("127.0.0.1", 0)
        name = node_name(host, queue) + ("" if number is None else f".{number}")
        argv = [sys.executable, "-P", "-m", "headrace.workers", "--model", queue, "--name", name]
        changes = {"HEADRACE_WORKER_METRICS_PORT": str(self._port), "HEADRACE_HEALTH_HOST": "127.0.0.1"}
        if server is not None:
            argv += ["--server-url", server.url]
            changes["HEADRACE_ENGINE_API_KEY"] = server.api_key
        if number is not None:
            changes["HEADRACE_DRAIN_S"] = str(settings.drain_s)
        self._child = Child(
            Command(
                name,
                argv,
                settings.home.absolute() / "logs" / f"{re.sub(r'[^A-Za-z0-9._@-]', '_', name)}.log",
                env=child_environment(changes),
                on_parent_death=signal.SIGTERM,
            )
        )
        self.state = PlaceState.STARTING
        self._since = clock()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def in_state_s(self) -> float:
        """Seconds in the state."""
        return self._clock() - self._since

    def look(self) -> bool:
        """Note whether the worker serves; return False if it has ended. It is killed after its time limits."""
        if self._child.exit_code is not None:
            return False
        if self.state is PlaceState.STARTING and self._is_ready():
            self._become(PlaceState.SERVING)
        limit_s = {PlaceState.STARTING: self._start_limit_s, PlaceState.DRAINING: self._stop_limit_s}
        if self.in_state_s > limit_s.get(self.state, float("inf")):
            self._child.kill()
            return False
        return True

    def drain(self) -> None:
        """Ask it to take no more jobs, to finish or hand back those that it has, and to end."""
        self._child.ask_to_stop()
        self._become(PlaceState.DRAINING)

    def hurry(self) -> None:
        """Ask a worker that drains to hand its jobs back now, and to end."""
        self._stop_limit_s = self.in_state_s + _GRACE_S
        self._child.ask_to_stop()

    def kill(self) -> None:
        """Kill it and all processes of its session."""
        self._child.kill()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._child.exit_code

    @property
    def has_drained(self) -> bool:
        """True if it has ended as it was asked to."""
        return self.state is PlaceState.DRAINING and self._child.exit_code == 0

    def why_ended(self) -> str:
        """Return the reason of its end: the worker's own sentence, or the signal."""
        code = self._child.exit_code
        if code is not None and code < 0:
            return f"it was ended by signal {-code}"
        return last_line(self._child.log_tail())

    def _become(self, state: PlaceState) -> None:
        self.state, self._since = state, self._clock()

    def _is_ready(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=_ASK_S)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == _OK
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


def node_name(host: str, queue: str) -> str:
    """Return the name of a worker in Flower and in the owners of jobs."""
    return f"{host}/{queue.replace('@', '.')}"


def end_left_over(host: str, pids: Iterable[int], limit_s: float) -> int:
    """Wait for workers that an earlier host of this name left, and kill those that do not end; return their number."""
    left = {pid for pid in pids if is_worker_of(host, pid)}
    give_up_at = time.monotonic() + limit_s
    while (alive := still_alive(left)) and time.monotonic() < give_up_at:
        time.sleep(LOOK_S)
    for pid in alive:
        if is_worker_of(host, pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    return len(left)


def is_worker_of(host: str, pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"workers" in words and any(word.startswith(node_name(host, "").encode()) for word in words)

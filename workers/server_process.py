"""Runs an inference server as this worker's own: starts it, waits until it is ready, restarts it, ends it.

    worker ──▶ guard (``store.process_guard``) ──▶ server ──▶ its processes

No process of the server outlives the worker. While the server is away the engine takes no jobs, and it asks the server
again what it runs when it is back.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import structlog

from headrace.store.child_process import Child, Command, still_alive
from headrace.store.errors import Unavailable
from headrace.store.periodic import Periodic
from headrace.store.process_guard import ON_PARENT_DEATH, guarded, kill_session
from headrace.store.supervisor import Program, Supervisor

log = structlog.get_logger(__name__)

_LOOK_S = 0.2
_SAY_S = 15.0
_STOP_S = 10.0
_ASK_S = 2.0
_OK = 200


class ServerProcess:
    """One server on this machine. ``argv`` makes it listen on ``port`` of ``host``."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log_file: Path, host: str, port: int):
        command = Command(name, guarded(argv), log_file, env=env, on_parent_death=ON_PARENT_DEATH)
        self._name = name
        self._address = (host, port)
        self._program = _GuardedProgram(command, self._answers, stop_s=_STOP_S)
        self._stopping = threading.Event()
        self._is_resting = threading.Event()
        self._supervisor = Supervisor([self._program], lambda said: log.warning("server_supervised", said=said))
        # It ends the program itself, because the kernel kills what a thread has started when the thread ends.
        self._thread = Periodic("server-supervisor", self._tend, _LOOK_S, at_end=self._program.stop)

    def start(self) -> None:
        """Start the server, and return when it is ready. Raises Unavailable, with its reason, if it ends before.

        There is no time limit, because large models load for long; progress is logged.
        """
        began = said = time.monotonic()
        self._program.start()
        log.info("server_starting", name=self._name, log=str(self._program.log))
        try:
            while not self._program.is_ready():
                if self._stopping.wait(_LOOK_S):
                    raise Unavailable(f"{self._name} was asked to end before it was ready")
                if time.monotonic() - said > _SAY_S:
                    said = time.monotonic()
                    log.info("server_starting", waited_s=round(said - began), last_line=self._program.last_line())
        except BaseException:
            self._program.stop()
            raise
        log.info("server_ready", name=self._name, took_s=round(time.monotonic() - began, 1))
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The process id of its guard; None before its start and after its end."""
        child = self._program.child
        return None if child is None or child.exit_code is not None else child.pid

    def rest(self) -> None:
        """Do not start the server again if it dies, until ``go_on``."""
        self._is_resting.set()

    def go_on(self) -> None:
        """Start the server again if it has died or dies."""
        self._is_resting.clear()

    def ask_to_stop(self) -> None:
        """Begin to end the server, without waiting for it; ``start`` raises Unavailable if it has not returned."""
        self._stopping.set()
        self._thread.stop(0)

    def stop(self) -> None:
        """End the server and all its processes."""
        self._stopping.set()
        self._thread.stop(2 * _STOP_S)
        self._program.stop()

    def _tend(self) -> None:
        if not self._is_resting.is_set():
            self._supervisor.tend()

    def _answers(self, _child: Child) -> bool:
        connection = HTTPConnection(*self._address, timeout=_ASK_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == _OK
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


class _GuardedProgram(Program):
    """A program under a guard: if the guard was killed, the processes that it guarded are killed here."""

    @property
    def log(self) -> Path:
        return self._command.log

    def last_line(self) -> str:
        """Return the last line that the program said."""
        lines = [] if self.child is None else self.child.log_tail().splitlines()
        return lines[-1] if lines else ""

    def start(self) -> None:
        """Start it, when nothing is left of the process before."""
        self._kill_rest(self.child)
        super().start()

    def stop(self) -> None:
        """Ask it to end, and kill what is left of it."""
        child = self.child
        super().stop()
        self._kill_rest(child)

    @staticmethod
    def _kill_rest(child: Child | None) -> None:
        if child is not None:
            kill_session(child.pid)


def server_log(folder: Path, name: str, pid: int) -> Path:
    """Return the log file of a worker's server, and remove those of workers that have ended."""
    stem = f"server-{name.replace('/', '_')}-"
    for old in folder.glob(f"{stem}*.log"):
        number = old.stem.removeprefix(stem)
        if number.isdecimal() and not still_alive([int(number)]):
            old.unlink(missing_ok=True)
    return folder / f"{stem}{pid}.log"

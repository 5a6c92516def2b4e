"""Programs that a command runs to their end, one step of a preparation, and whether a started one answers by HTTP."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx2

from headrace.cli.local.stopping import wait_for_end
from headrace.store.child_process import Child, die_with_parent

PYTHON = (sys.executable, "-P", "-m")
"""Runs a module of Headrace without the current folder on the path, which may contain a ``models.py``."""


def run_step(
    argv: Sequence[str | Path],
    env: Mapping[str, str],
    log: Path | None,
    *,
    while_running: Callable[[], None] = lambda: None,
) -> int:
    """Run a program and return its exit code. Its output goes to ``log``; None: to the terminal.

    ``while_running`` is called again and again until the program ends.

    It shares this process group, so Ctrl-C reaches it too. Raises KeyboardInterrupt if this process is asked to stop.
    """
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log else None
        process = subprocess.Popen(
            [str(part) for part in argv],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out or subprocess.DEVNULL,
            stderr=out,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        try:
            return wait_for_end(process, while_running)
        finally:
            # No effect on a process that has ended.
            process.kill()
            process.wait()


def answers(url: str) -> Callable[[Child], bool]:
    """Return a test whether a child answers ``url`` with 200, itself or by a process below it.

    Another program may listen there: the port was free when it was chosen, and the child needs seconds to listen.
    """

    def ask(child: Child) -> bool:
        try:
            # Without proxies of the environment: the address is on this machine.
            is_ok = httpx2.get(url, timeout=2, trust_env=False).status_code == httpx2.codes.OK
        except httpx2.TransportError:
            return False
        return is_ok and _listens(child.pid, httpx2.URL(url).port)

    return ask


def _listens(pid: int, port: int | None) -> bool:
    """True if a process or one below it listens on a TCP port, and where the system does not tell."""
    import psutil  # noqa: PLC0415 - from the extra `local`; without it `headrace up` starts, to say what to install

    try:
        process = psutil.Process(pid)
        connections = [one for each in (process, *process.children(True)) for one in each.net_connections("tcp")]
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)

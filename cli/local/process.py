"""Programs that a command runs to their end: one step of a preparation."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cli.local.stopping import wait_for_end
from store.child_process import die_with_parent

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

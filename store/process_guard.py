"""Runs a program that starts processes of its own, and lets none of them survive: ``guarded(argv)`` is its command.

    parent ──▶ guard ──▶ program ──▶ its processes         all in the session of the guard

The kernel's signal at a parent's death reaches only the direct child, and an inference server of several processes may
leave some of them behind. The guard kills every process of its session when its parent dies, when it is asked to stop
and the program has ended, and when the program ends by itself.

The program has the stdin, stdout and stderr of the guard, which runs as a script of the standard library alone, so it
costs little memory.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final

ON_PARENT_DEATH: Final = signal.SIGHUP
"""The signal that the guard must get when its parent dies: ``child_process.Command.on_parent_death``."""

NOT_STARTED: Final = 127
"""The exit code of the guard if the program cannot be started."""

_PR_SET_PDEATHSIG = 1
_PATIENCE_S = 5.0
_LOOK_S = 0.02


def guarded(argv: Sequence[str | Path]) -> list[str]:
    """Return the command that runs ``argv`` under a guard. It must be started as the leader of a new session."""
    return [sys.executable, "-I", "-S", __file__, *(str(part) for part in argv)]


def kill_session(session: int, *, but: int | None = None) -> None:
    """Kill all processes of a session, except ``but``, and wait until they have ended."""
    give_up_at = time.monotonic() + _PATIENCE_S
    while (found := _in_session(session) - {but}) and time.monotonic() < give_up_at:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_S)


def _in_session(session: int) -> set[int]:
    """Return the live processes of a session, without zombies. Empty without /proc."""
    found = set[int]()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may contain anything; state, parent, group and session follow it.
            state, _parent, _group, belongs_to = entry.read_text().rpartition(")")[2].split()[:4]
            if int(belongs_to) == session and state not in "ZX":
                found.add(int(entry.parent.name))
    return found


def _die_with_guard() -> None:
    """Let the kernel kill the program if the guard itself is killed. It runs in the program's process, before it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def main(argv: Sequence[str]) -> int:
    """Run the program; return its exit code, 128 and more for a signal."""
    program: subprocess.Popen[bytes] | None = None
    is_stopping = is_orphan = False

    def ask(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        is_stopping = True
        if program is not None:
            program.terminate()

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        # Nothing is raised: the kernel sends the signal for each thread of the parent, so it comes several times.
        nonlocal is_orphan
        is_orphan = True
        if program is not None:
            program.kill()

    try:
        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGINT, ask)
        signal.signal(ON_PARENT_DEATH, give_up)
        program = subprocess.Popen(list(argv), preexec_fn=_die_with_guard)
        if is_orphan:
            program.kill()
        elif is_stopping:
            program.terminate()
        code = program.wait()
    except OSError as error:
        sys.stderr.write(f"error: {argv[0]} cannot be started: {error.strerror}\n")
        code = NOT_STARTED
    finally:
        kill_session(os.getsid(0), but=os.getpid())
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

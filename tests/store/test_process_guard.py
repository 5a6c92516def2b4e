"""No process of a guarded program outlives the guard's parent, the guard or the program."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.store.child_process import Child, Command
from headrace.store.process_guard import ON_PARENT_DEATH, guarded, kill_session
from tests.cli.test_process import ended_within
from tests.refusals import Naming

# A program with a child in a process group of its own. Both ignore the request to stop if they are deaf.
PROGRAM = textwrap.dedent("""
    import os, signal, subprocess, sys
    if sys.argv[1] == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    inner = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; sleep 60; sleep 60"], process_group=0)
    print(os.getpid(), inner.pid, flush=True)
    signal.pause()
""")


def command(log: Path, manner: str = "polite") -> Command:
    argv = guarded([sys.executable, "-c", PROGRAM, manner])
    return Command("guard", argv, log, on_parent_death=ON_PARENT_DEATH)


def started(child: Child) -> tuple[int, int]:
    """Return the pids of the program and of its child."""
    give_up_at = time.monotonic() + 30
    while len(said := child.log_tail().split()) < 2:
        assert child.exit_code is None
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    program, inner = map(int, said)
    return program, inner


def stop(child: Child, _program: int) -> None:
    assert child.stop(10) == 128 + signal.SIGTERM


def kill_program(_child: Child, program: int) -> None:
    os.kill(program, signal.SIGKILL)


def kill_guard(child: Child, program: int) -> None:
    os.kill(child.pid, signal.SIGKILL)
    assert ended_within(program, 10), "the kernel ends it"
    kill_session(child.pid)


def lose_threads_of_parent(child: Child, _program: int) -> None:
    while child.exit_code is None:
        os.kill(child.pid, ON_PARENT_DEATH)


@pytest.mark.parametrize("end", [stop, kill_program, kill_guard, lose_threads_of_parent])
def test_all_end_together(tmp_path: Path, end: Callable[[Child, int], None]) -> None:
    child = Child(command(tmp_path / "log"))
    program, inner = started(child)
    end(child, program)
    assert all(ended_within(pid, 10) for pid in (child.pid, program, inner))
    assert child.exit_code is not None


@pytest.mark.parametrize("manner", ["polite", "deaf"])
def test_all_end_when_the_parent_is_killed(tmp_path: Path, manner: str) -> None:
    script = textwrap.dedent(f"""
        import os
        from pathlib import Path
        from headrace.store.child_process import Child
        from tests.store.test_process_guard import command, started
        child = Child(command(Path({str(tmp_path / "log")!r}), {manner!r}))
        print(child.pid, *started(child), flush=True)
        os.kill(os.getpid(), 9)
    """)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60, cwd=root
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert all(ended_within(int(pid), 10) for pid in done.stdout.split())


def test_a_program_that_is_missing_is_said(tmp_path: Path) -> None:
    child = Child(Command("guard", guarded(["/nowhere/program"]), tmp_path / "log"))
    while child.exit_code is None:
        time.sleep(0.02)
    assert child.exit_code == 127
    assert child.log_tail() == Naming("/nowhere/program", "No such file")

"""Children end with their parent, when asked, and when they will not listen; a supervisor starts them again."""

import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.local.process import answers
from headrace.cli.local.stopping import wait_until_ready
from headrace.store.child_process import Child, Command, cpu_time_below, descendants, last_line, still_alive
from headrace.store.errors import Unavailable
from headrace.store.supervisor import NOT_AGAIN, Program, Supervisor
from tests.processes import WAIT_S, free_port, wait_for

SLEEP = ["/bin/sleep", "600"]
DEAF = [
    sys.executable,
    "-c",
    "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()",
]


def shell(script: str, log: Path, name: str = "child") -> Command:
    return Command(name, ["/bin/sh", "-c", script], log)


def ended_within(pid: int, seconds: float) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(fd) as file:
        return bool(select.select([file], [], [], seconds)[0])


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import os; from pathlib import Path; from headrace.store.child_process import Child, Command\n"
        f"child = Child(Command('sleep', {SLEEP!r}, Path({str(tmp_path / 'log')!r})))\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.returncode == -signal.SIGKILL
    assert ended_within(int(done.stdout), WAIT_S)


def test_stop_asks_first_and_then_insists(tmp_path: Path) -> None:
    assert Child(Command("sleep", SLEEP, tmp_path / "log")).stop() == -signal.SIGTERM
    deaf = Child(Command("deaf", DEAF, tmp_path / "deaf"))
    while not deaf.log_tail():
        assert deaf.exit_code is None
    assert deaf.stop(timeout_s=0.2) == -signal.SIGKILL


def test_descendants_are_found_however_deep_and_forgotten_when_they_end(tmp_path: Path) -> None:
    child = Child(shell("sleep 600 & sleep 600 & wait", tmp_path / "log"))
    while len(below := descendants(child.pid)) < 2:
        assert child.exit_code is None
    assert {child.pid, *below} <= descendants(os.getpid())
    assert still_alive(below) == below
    child.kill()
    assert all(ended_within(pid, WAIT_S) for pid in below)
    assert still_alive(below) == set()


def test_the_number_of_a_child_that_has_ended_is_not_killed(tmp_path: Path) -> None:
    child = Child(shell("sleep 60 & echo $!", tmp_path / "log"))
    wait_for(lambda: child.exit_code == 0, "the child has ended")
    # Another program in the group of that number, as when the kernel has given the number to another process.
    stranger = int(child.log_tail())
    assert child.kill() == 0
    child.send(signal.SIGKILL)
    assert not ended_within(stranger, 0.5)
    os.kill(stranger, signal.SIGKILL)


def test_a_log_shows_what_this_process_wrote(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("from before\n")
    child = Child(shell("echo one; echo it is an error: two; echo three", log))
    assert ended_within(child.pid, WAIT_S)
    assert child.exit_code == 0
    assert child.log_tail().splitlines() == ["one", "it is an error: two", "three"]
    assert last_line(child.log_tail()) == "it is an error: two"


def test_a_log_that_has_grown_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.store.child_process.MAX_LOG_BYTES", 10)
    log = tmp_path / "log"
    for word in ("one " * 10, "two", "three"):
        child = Child(shell(f"echo {word}", log))
        assert ended_within(child.pid, WAIT_S)
        assert child.exit_code == 0
    assert (tmp_path / "log.1").read_text().startswith("one one")
    assert log.read_text() == "two\nthree\n"


def test_a_program_that_ends_before_it_serves_is_told_with_its_last_words(tmp_path: Path) -> None:
    program = Program(shell("echo the model is damaged; exit 1", tmp_path / "log", "worker"), lambda _child: False)
    program.start()
    with pytest.raises(Unavailable, match=r"^worker ended: the model is damaged \(log: .*\)$"):
        wait_until_ready([program], WAIT_S)


def test_a_program_that_never_serves_is_named(tmp_path: Path) -> None:
    program = Program(Command("api", SLEEP, tmp_path / "log"), lambda _child: False)
    program.start()
    try:
        with pytest.raises(Unavailable, match="progress: api"):
            wait_until_ready([program], 0.1)
    finally:
        program.stop()


@pytest.mark.parametrize("sign", ["words", "work"])
def test_a_program_is_waited_for_while_its_server_shows_a_sign_of_life(
    sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [json.dumps({"last_line": f"shard {n}"}) for n in range(5 if sign == "words" else 1)]
    worked_s = [*range(5 if sign == "work" else 1)]
    monkeypatch.setattr(
        "headrace.cli.local.stopping.cpu_time_below",
        lambda _pid: worked_s.pop(0) if len(worked_s) > 1 else worked_s[0],
    )

    class Worker:
        name = "worker"
        pid = 2**22 + 1  # above every process id

        def __init__(self) -> None:
            self.child = self

        def log_tail(self) -> str:
            return said.pop(0) if len(said) > 1 else said[0]

        def is_ready(self) -> bool:
            return False

    programs: list[Any] = [Worker()]
    with pytest.raises(Unavailable, match="not ready"):
        wait_until_ready(programs, 0)
    assert (len(said), len(worked_s)) == (1, 1), "it was given up only when nothing new came"


def test_the_work_of_the_processes_below_one_is_seen(tmp_path: Path) -> None:
    busy = Child(shell(f"{sys.executable} -c 'while True: pass' & sleep 600", tmp_path / "log"))
    try:
        wait_for(lambda: cpu_time_below(busy.pid) > 0.2)
    finally:
        busy.kill()
    assert cpu_time_below(busy.pid) == 0


def test_a_program_is_not_ready_because_another_one_answers_at_its_port(tmp_path: Path) -> None:
    port = free_port()
    is_ready = answers(f"http://127.0.0.1:{port}/")
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", tmp_path, str(port)]
    other, late = Child(Command("other", serve, tmp_path / "other")), Child(Command("api", SLEEP, tmp_path / "log"))
    try:
        wait_for(lambda: is_ready(other), "the server answers")
        assert not is_ready(late)
    finally:
        other.kill()
        late.kill()


def test_who_ends_is_started_again_after_a_growing_pause(tmp_path: Path) -> None:
    now, said = [0.0], list[str]()
    program = Program(shell("echo out of luck; exit 3", tmp_path / "log", "worker"), lambda _child: True)
    supervisor = Supervisor([program], said.append, clock=lambda: now[0])

    def run_until_it_ended() -> int:
        assert program.child
        assert ended_within(program.child.pid, WAIT_S)
        supervisor.tend()
        return program.child.pid

    program.start()
    first = run_until_it_ended()
    assert re.fullmatch("worker .*exit 3.*out of luck.* 1 s", *said)
    now[0] = 0.9
    supervisor.tend()
    assert program.child
    assert program.child.pid == first
    now[0] = 1.0
    supervisor.tend()
    assert [line.split()[0] for line in said[1:]] == ["worker"]
    assert run_until_it_ended() != first
    assert re.fullmatch("worker .*exit 3.*out of luck.* 2 s", *said[2:])
    now[0] = 100.0
    supervisor.tend()
    now[0] = 161.0  # it ran for over a minute: the next pause is short again
    run_until_it_ended()
    assert said[-1].endswith(" 1 s")


def test_who_must_not_be_restarted_is_named_once(tmp_path: Path) -> None:
    said: list[str] = []
    program = Program(shell(f"echo was rejected; exit {NOT_AGAIN}", tmp_path / "log", "worker"), lambda _child: True)
    now = [0.0]
    supervisor = Supervisor([program], said.append, clock=lambda: now[0])
    program.start()
    assert program.child
    assert ended_within(program.child.pid, WAIT_S)
    for now[0] in (0.0, 100.0):
        supervisor.tend()
    assert re.fullmatch("worker .*was rejected.*", *said)


def test_who_was_killed_is_not_said_to_have_ended_of_its_last_words(tmp_path: Path) -> None:
    said: list[str] = []
    program = Program(shell("echo a warning of something else; kill -9 $$", tmp_path / "log", "worker"), lambda _: True)
    supervisor = Supervisor([program], said.append, clock=lambda: 0.0)
    program.start()
    assert program.child
    assert ended_within(program.child.pid, WAIT_S)
    with pytest.raises(Unavailable, match=r"^worker .*signal 9"):
        program.is_ready()
    supervisor.tend()
    assert re.fullmatch("worker .*signal 9.* 1 s", *said)


def test_who_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    class Broken:
        name = "PostgreSQL"
        child = Child(shell("exit 1", tmp_path / "log"))

        def start(self) -> None:
            raise Unavailable("PostgreSQL did not start: no space left")

        def stop(self) -> None: ...

    now, said = [0.0], list[str]()
    assert ended_within(Broken.child.pid, WAIT_S)
    supervisor = Supervisor([Broken()], said.append, clock=lambda: now[0])
    for at_s in (0.0, 1.0, 2.9, 3.0):
        now[0] = at_s
        supervisor.tend()
    assert [line[-4:] for line in said[1:]] == [" 2 s", " 4 s"]

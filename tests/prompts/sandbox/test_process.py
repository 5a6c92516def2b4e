"""Programs in confinement: what one that a file has taken over cannot read, write, call or leave behind."""

import json
import os
import resource
import socket
import sys
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path
from typing import Any

import pytest

from headrace.prompts.sandbox import process
from headrace.prompts.sandbox.confined import landlock_version
from headrace.prompts.sandbox.process import Program, answer_of
from tests.processes import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems confine no process")

SPY = """
import json, os, socket, sys
from pathlib import Path

def tried(what):
    try:
        return str(what())
    except OSError as error:
        return type(error).__name__

secret, port = sys.argv[1:]
made = Path(os.environ["TMPDIR"], "made")
print(json.dumps({
    "given": sys.stdin.read(),
    "environment": dict(os.environ),
    "of parent": tried(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes()),
    "memory of parent": tried(lambda: open(f"/proc/{os.getppid()}/mem", "rb").close()),
    "file": tried(lambda: Path(secret).read_text()),
    "written beside it": tried(lambda: Path(secret + "2").write_text("x")),
    "written in its folder": tried(lambda: made.write_text("x")),
    "connected": tried(lambda: socket.create_connection(("127.0.0.1", int(port)), 5).close()),
}))
"""
DENIED = "PermissionError"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def seen_by_spy(folder: Path, listener: socket.socket) -> dict[str, Any]:
    (folder / "program").mkdir()
    program = folder / "program" / "spy.py"
    program.write_text(SPY)
    (folder / "secret").write_text("s3cr3t")
    port = str(listener.getsockname()[1])
    told = answer_of(Program(program), str(folder / "secret"), port, data=b"a file", wall_s=60)
    found: dict[str, Any] = json.loads(told)
    return found


@pytest.mark.skipif(not landlock_version(), reason="the kernel has no Landlock")
def test_a_program_reads_nothing_of_the_machine_and_calls_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listener: socket.socket
) -> None:
    for name in ("DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS", "ANY_OTHER"):
        monkeypatch.setenv(name, "s3cr3t")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    seen = seen_by_spy(tmp_path, listener)
    assert seen["given"] == "a file"
    assert "s3cr3t" not in seen["environment"].values()
    assert seen["environment"]["LC_TIME"] == "C.UTF-8"
    for what in ("of parent", "memory of parent", "file", "written beside it"):
        assert seen[what] == DENIED, what
    assert seen["written in its folder"] == "1"
    if landlock_version() >= 4:
        assert seen["connected"] == DENIED


def test_without_landlock_a_program_reads_no_environment_of_its_parent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listener: socket.socket
) -> None:
    monkeypatch.setattr(process, "landlock_version", lambda: 0)
    try:
        seen = seen_by_spy(tmp_path, listener)
    finally:
        CDLL(None).prctl(4, 1, 0, 0, 0)  # this process is readable again
    assert (seen["of parent"], seen["memory of parent"], seen["file"]) == (DENIED, DENIED, "s3cr3t")


def test_nothing_of_a_program_is_left_and_its_answer_is_bounded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os, time\nchild = os.fork()\nprint(child, flush=True) if child else time.sleep(600)")
    child = int(answer_of(Program(program), data=b"", wall_s=60))
    state = Path(f"/proc/{child}/stat")
    wait_for(lambda: not state.exists() or state.read_text().split()[2] in "ZX", "what it has started has ended")
    monkeypatch.setattr(process, "MOST_ANSWERED", 1000)
    program.write_text("print('x' * 5000)")
    assert len(answer_of(Program(program), data=b"", wall_s=60)) <= 1000
    program.write_text("x = 'x' * (1 << 30)\nprint('made')")
    assert answer_of(Program(program, limits=[(resource.RLIMIT_AS, 1 << 29)]), data=b"", wall_s=60) == b""
    program.write_text("import os\nprint(os.nice(0))")
    assert answer_of(Program(program, nice=3), data=b"", wall_s=60).split() == [str(min(19, os.nice(0) + 3)).encode()]

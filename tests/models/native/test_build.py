"""Compiling the kernels, with a stand-in for the compiler."""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT

_COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo stand-in; exit; fi
echo compiled >> "$COMPILATIONS"
sleep 2
while [ "$1" != -o ]; do shift; done
touch "$2"
"""


def test_processes_that_start_at_once_compile_the_kernels_once(tmp_path: Path) -> None:
    log, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    compiler = programs / "g++"
    compiler.write_text(_COMPILER)
    compiler.chmod(0o755)
    env = {"PATH": f"{programs}:{os.defpath}", "COMPILATIONS": str(log)}
    command = [sys.executable, "-m", "headrace.models.native.build", str(tmp_path / "kernels")]
    started = [subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    paths = {process.communicate(timeout=120)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0] * len(started)
    (library,) = paths
    assert Path(library).is_file()
    assert log.read_text().splitlines() == ["compiled"]

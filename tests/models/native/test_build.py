"""The kernels' source is accepted for CPUs that this machine is not."""

import platform
import shutil
import subprocess

import pytest

from models.native.build import SOURCES

CPUS = ("x86-64", "x86-64-v3", "skylake-avx512", "icelake-server", "sapphirerapids")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the compiler here knows other CPUs")
@pytest.mark.parametrize("cpu", CPUS)
def test_the_compiler_takes_the_source_for(cpu: str) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no compiler, so no kernels")
    flags = ["-std=c++20", f"-march={cpu}", "-fopenmp", "-Wno-psabi", "-fsyntax-only"]
    command = [compiler, *flags, str(SOURCES / "pass.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[:2000]

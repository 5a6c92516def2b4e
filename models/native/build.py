"""Compile the kernels for this CPU, once, into a folder. Without a compiler, models run on torch.

The file name has a digest of the sources, the flags, the compiler and the CPU features. So different machines can share
a folder. ``python -m headrace.models.native.build FOLDER`` compiles ahead of time.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
_COMPILERS = ("g++", "c++", "clang++")
# The compiler must not fuse multiply and add: only the kernels do, so that the bits of a row never depend on the batch.
_ARITHMETIC = ("-fno-math-errno", "-ffp-contract=off")
FLAGS = ("-std=c++20", "-O3", "-march=native", *_ARITHMETIC, "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
_TIMEOUT_S = 300


class BuildFailed(Exception):
    """The kernels cannot be compiled here. The message is one sentence with the reason."""


def build(folder: Path, *, defines: Sequence[str] = ()) -> Path:
    """Return the library in ``folder``. If it is missing, compile it: about ten seconds, with a line on stderr.

    ``defines`` are macros of a variant, which has a file of its own. Raises BuildFailed.
    """
    flags = [*FLAGS, *(f"-D{name}" for name in defines)]
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise BuildFailed(f"no C++ compiler ({', '.join(_COMPILERS)}) is on the PATH")
    library = folder / f"kernels-{_digest(compiler, flags)}.so"
    if not library.is_file():
        with _locked(library):
            # The process that had the lock before has compiled it.
            if not library.is_file():
                _compile(compiler, flags, library)
    return library


@contextmanager
def _locked(library: Path) -> Iterator[None]:
    """Hold the lock of the library: of the processes that need it at once, one compiles and the others wait.

    The kernel frees the lock of a process that ends. Raises BuildFailed if the folder cannot be written.
    """
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        lock = library.with_suffix(".lock").open("w")
    except OSError as error:
        raise BuildFailed(f"the kernels cannot be built in {library.parent}: {error}") from error
    with lock:
        with suppress(OSError):  # a file system without locks: each process compiles the same file
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(compiler: str, flags: Sequence[str]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [version, *flags, platform.machine(), _cpu_features()]
    parts += [path.read_text() for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cpu_features() -> str:
    """Return the instruction sets of the CPU, so that machines with different ones do not share a library."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: str, flags: Sequence[str], library: Path) -> None:
    sys.stderr.write("headrace: compiling the CPU kernels, once ...")
    sys.stderr.flush()
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            made = Path(scratch) / library.name
            command = [compiler, *flags, "-o", str(made), str(SOURCES / "forward.cpp")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["it printed nothing"]
                raise BuildFailed(f"{compiler} failed: {lines[0]}")
            # Atomic: a process on a file system without locks may compile the same file at the same time.
            os.replace(made, library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"the kernels cannot be built in {library.parent}: {error}") from error
    finally:
        sys.stderr.write(f" {time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    sys.stdout.write(f"{build(Path(sys.argv[1]))}\n")

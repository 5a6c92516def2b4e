"""Starts programs that work on what a tenant has sent, in confinement: see ``confined``.

They have an environment of a few named variables, because a program that a file takes over would find secrets in any
other: ours, and those of the libraries of storage, models and telemetry.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from headrace.prompts.sandbox import confined
from headrace.prompts.sandbox.confined import Order, hide_from_others, landlock_version
from headrace.store.settings import bare_environment

MOST_ANSWERED = 128 << 20
"""Bytes of an answer and of each file that a program writes: 8 Mi characters in JSON have at most 96 MiB."""


@dataclass(frozen=True)
class Program:
    """A program in Python, a file that imports nothing of Headrace, and its bounds.

    ``limits``: (resource, most) as of ``setrlimit``. ``environment``: variables beside those of ``bare_environment``.
    ``readable``: files and folders that it reads beside Python's and the system's.
    """

    file: Path
    limits: Sequence[tuple[int, int]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    readable: Sequence[str] = ()
    nice: int = 0


def start(program: Program, *arguments: str, folder: str | None = None, **pipes: Any) -> subprocess.Popen[Any]:
    """Start a program in a session of its own. ``folder``: where it may write. ``pipes``: as of ``Popen``."""
    version = landlock_version()
    if not version:
        hide_from_others()
    order = Order(
        limits=list(program.limits), nice=program.nice, readable=list(program.readable), folder=folder, landlock=version
    )
    command = [sys.executable, "-P", str(confined.__file__), json.dumps(order), str(program.file), *arguments]
    own = {} if folder is None else {"HOME": folder, "TMPDIR": folder}
    env = {**bare_environment(), **own, **program.environment}
    return subprocess.Popen(command, env=env, start_new_session=True, **pipes)


def answer_of(program: Program, *arguments: str, data: bytes, wall_s: float) -> bytes:
    """Run a program once: ``data`` is its standard input. Return its standard output, whatever its exit code. Blocks.

    Raises TimeoutError after ``wall_s``. The program, and what it has started, has ended then.
    """
    limits = [*program.limits, (resource.RLIMIT_FSIZE, MOST_ANSWERED)]
    bounded = Program(program.file, limits, program.environment, program.readable, program.nice)
    # Files, not pipes: a program could fill this process's memory through a pipe.
    with TemporaryDirectory(prefix="headrace-") as folder, TemporaryFile() as given, TemporaryFile() as told:
        given.write(data)
        given.seek(0)
        process = start(bounded, *arguments, folder=folder, stdin=given, stdout=told, stderr=subprocess.DEVNULL)
        try:
            process.wait(wall_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not within {wall_s:.0f} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        told.seek(0)
        return told.read(MOST_ANSWERED)

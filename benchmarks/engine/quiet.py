"""Other load on the machine. Engines with threads that spin at barriers lose half their speed or more to one neighbour.

So a turn waits until the machine is quiet, and how much others took during it is kept with its figures.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

Say = Callable[[str], None]

QUIET_CPUS = 0.1
_LOOK_S = 1.0
_MARK = "BENCH_ENGINE_PID"


@dataclass
class Others:
    """How many CPUs' worth of time processes other than this one and its children took; known when the watch ends."""

    cpus: float = 0.0


@contextmanager
def watched() -> Iterator[Others]:
    """Measure what others take while the block runs."""
    others = Others()
    began, busy, own = time.perf_counter(), _busy_s(), _own_s()
    yield others
    seconds = time.perf_counter() - began
    others.cpus = round(max(0.0, (_busy_s() - busy) - (_own_s() - own)) / seconds, 2)


def wait_until_quiet(most_s: float, say: Say) -> None:
    """Return when others take next to nothing, or after ``most_s``."""
    deadline = time.monotonic() + most_s
    has_said = False
    while time.monotonic() < deadline:
        with watched() as others:
            time.sleep(_LOOK_S)
        if others.cpus <= QUIET_CPUS:
            return
        if not has_said:
            say(f"  others take {others.cpus} CPUs: waiting up to {most_s:.0f} s")
            has_said = True


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def mark() -> dict[str, str]:
    """Return the environment entry that marks a process, and all that it starts, as part of the benchmark.

    Its descendants would not do: a database server that is started as a daemon has no parent of ours.
    """
    return {_MARK: str(os.getpid())}


def _own_s() -> float:
    total = 0.0
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid == os.getpid() or process.environ().get(_MARK) == str(os.getpid()):
                total += sum(process.cpu_times()[:4])  # the children_* times hold those that ended
    return total

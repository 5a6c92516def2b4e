"""Waits that end when a signal asks this process to stop.

Signals only set a flag (``store.stop_signals``). Long operations check it and raise KeyboardInterrupt here, not in a
signal handler, so that the exception occurs only in code that expects it. The shutdown does not check the flag, because
it is bounded.
"""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from headrace.store.child_process import cpu_time_below
from headrace.store.errors import Unavailable
from headrace.store.stop_signals import on_stop_signals
from headrace.store.supervisor import Program

T = TypeVar("T")

_asked = threading.Event()
_LOOK_S = 0.1
_SAY_S = 20.0
_MAX_SAID = 120
_WORK_S = 5.0
"""The work of a program's processes is looked at so often."""


def hear_stop_signals() -> None:
    """From now on Ctrl-C, SIGTERM and a closed terminal set the flag instead of interrupting the process."""
    on_stop_signals(_asked.set, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if a signal has asked this process to stop."""
    if _asked.is_set():
        raise KeyboardInterrupt


def pause(seconds: float) -> None:
    """Wait. Raises KeyboardInterrupt as soon as a signal asks to stop."""
    _asked.wait(seconds)
    stop_if_asked()


def wait_for_end(process: subprocess.Popen[bytes], while_running: Callable[[], None] = lambda: None) -> int:
    """Return the exit code of a process. Raises KeyboardInterrupt as soon as a signal asks to stop.

    ``while_running`` is called again and again until then.
    """
    while (code := process.poll()) is None:
        while_running()
        pause(_LOOK_S)
    return code


def wait_until_ready(
    programs: Sequence[Program], timeout_s: float, say: Callable[[str], None] = lambda text: None
) -> None:
    """Wait until all of them are ready. Raises Unavailable if one has ended or the time is over.

    ``timeout_s`` is the time without progress. A program makes progress when another one becomes ready, and while the
    processes that it has started work, as an inference server does that reads and compiles a model.

    ``say`` gets the names of those that are not ready, from time to time.

    Raises KeyboardInterrupt as soon as this process is asked to stop.
    """
    waiting = list(programs)
    began = said = time.monotonic()
    deadline, seen, looked = began + timeout_s, None, began
    while waiting := [program for program in waiting if not program.is_ready()]:
        now = time.monotonic()
        names = ", ".join(program.name for program in waiting)
        if now - said > _SAY_S:
            said = now
            say(f"waiting for {names} ({now - began:.0f} s){_progress(waiting[0])}")
        if now - looked > _WORK_S or now > deadline:
            looked = now
            if (signs := [(program.name, *_signs(program)) for program in waiting]) != seen:
                deadline = max(deadline, now + timeout_s)
            seen = signs
        if now > deadline:
            raise Unavailable(f"not ready after {timeout_s:.0f} s without progress: {names} (see the logs)")
        # Asking costs a little, and a large model loads for minutes.
        pause(0.05 if now - began < _SAY_S else 0.5)


def _signs(program: Program) -> tuple[int, str]:
    """Return what changes while a program's own processes work: their seconds of CPU time, and the server's words."""
    return 0 if program.child is None else int(cpu_time_below(program.child.pid)), _progress(program)


def _progress(program: Program) -> str:
    """Return what a worker's inference server said last, as the worker logs it while it waits; else nothing."""
    lines = [] if program.child is None else program.child.log_tail().splitlines()
    try:
        return f": {json.loads(lines[-1])['last_line'][:_MAX_SAID]}"
    except (IndexError, ValueError, KeyError, TypeError):
        return ""


def run_until_stopped(work: Callable[[], T]) -> T:
    """Run ``work`` on a thread and return its result. Raises KeyboardInterrupt as soon as a signal asks to stop.

    The thread may then continue until its connections fail.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the main thread
            errors.append(error)

    thread = threading.Thread(target=run, name="work", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_S)
        stop_if_asked()
    if errors:
        raise errors[0]
    return results[0]

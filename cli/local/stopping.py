"""Whether this process was asked to stop, and waits that end then.

Signals only set a flag (``store.stop_signals``); what may take long looks at it and raises KeyboardInterrupt, here and
not in a handler, so that it is raised in code that expects it. Nothing that ends a stack looks: stopping is bounded.
"""

import signal
import subprocess
import threading
from collections.abc import Callable
from typing import TypeVar

from store.stop_signals import on_stop_signals

T = TypeVar("T")

_asked = threading.Event()
_LOOK_S = 0.1


def hear_stop_signals() -> None:
    """Note Ctrl-C, SIGTERM and a closed terminal from now on, in place of being interrupted by them."""
    on_stop_signals(_asked.set, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if a signal has asked this process to stop."""
    if _asked.is_set():
        raise KeyboardInterrupt


def pause(seconds: float) -> None:
    """Wait; raise KeyboardInterrupt as soon as a signal asks to stop."""
    _asked.wait(seconds)
    stop_if_asked()


def wait_for_end(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a process; raise KeyboardInterrupt as soon as a signal asks to stop."""
    while (code := process.poll()) is None:
        pause(_LOOK_S)
    return code


def run_until_stopped(work: Callable[[], T]) -> T:
    """Return what ``work`` returns, run on a thread; raise KeyboardInterrupt as soon as a signal asks to stop.

    The thread may then go on until what it talks to is gone.
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

"""A thread that does the same thing every few seconds, such as a heartbeat, a renewal, or a look at a process.

Each process that has such a thread runs it for itself. Duties of one process among several are the keeper's
(``store.keeper``).
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Self

import structlog

from headrace.store.errors import Unavailable

log = structlog.get_logger(__name__)

UNTIL_WOKEN = threading.TIMEOUT_MAX
"""The pause of a thread that has nothing to do until ``wake``."""

failures: Counter[str] = Counter()
"""The failed turns of this process, by the name of the thread."""


def _do_nothing() -> None:
    """Nothing is to be done at the end."""


class Periodic:
    """Calls ``turn`` on a thread of its own: at once, and then ``period_s`` seconds after the end of each turn.

    ``turn`` may return another pause, in seconds. What it raises is logged and counted, and the next turn comes.
    ``at_end`` is called on the thread after the last turn. As a context manager it runs for the block.
    """

    def __init__(
        self, name: str, turn: Callable[[], float | None], period_s: float, *, at_end: Callable[[], None] = _do_nothing
    ) -> None:
        self._name = name
        self._turn = turn
        self._period_s = period_s
        self._at_end = at_end
        self._failing: type[Exception] | None = None
        self._is_stopping = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        failures[name] += 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def run_once(self) -> None:
        """Do a turn on the calling thread, before ``start``. Raises nothing."""
        self._try(self._turn)

    def wake(self) -> None:
        """Let the next turn begin now."""
        self._woken.set()

    def stop(self, wait_s: float = 1.0) -> None:
        """Begin no more turns. Waits for the turn under way, at most ``wait_s`` seconds."""
        self._is_stopping = True
        self._woken.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(wait_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(UNTIL_WOKEN)

    def _run(self) -> None:
        while not self._is_stopping:
            pause_s = self._try(self._turn)
            self._woken.wait(self._period_s if pause_s is None else pause_s)
            self._woken.clear()
        self._try(self._at_end)

    def _try(self, run: Callable[[], float | None]) -> float | None:
        try:
            pause_s = run()
        except Exception as error:
            failures[self._name] += 1
            if type(error) is not self._failing:  # logged once, not at every turn of a long outage
                self._failing = type(error)
                if isinstance(error, Unavailable):
                    log.warning("periodic_failed", thread=self._name, reason=error.message)
                else:
                    log.error("periodic_failed", thread=self._name, exc_info=error)
            return None
        if self._failing is not None:
            self._failing = None
            log.info("periodic_recovered", thread=self._name)
        return pause_s

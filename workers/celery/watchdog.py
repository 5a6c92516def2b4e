"""Two threads that outlive a hang: one looks at the engine, the other keeps the time of a drain.

Neither does the work it watches over. When waiting any longer helps nobody, the process ends at once: its jobs were
handed back, and the leases of those that were not run out.
"""

import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from workers.celery.thread_pool import Drain

log = structlog.get_logger(__name__)

EXIT_ENGINE_DEAD = 70  # EX_SOFTWARE


class Engine(Protocol):
    """What the watchdog asks of the engine."""

    def is_healthy(self, max_step_s: float) -> bool:
        """False if the engine's thread is dead or its step has been running for longer than ``max_step_s``."""
        ...


class EngineWatchdog:
    """Calls ``on_dead`` once, from its own thread, when the engine is no longer healthy."""

    def __init__(self, engine: Engine, *, max_step_s: float, on_dead: Callable[[], None]) -> None:
        self._engine = engine
        self._max_step_s = max_step_s
        self._on_dead = on_dead
        self._stopped = False
        self._look = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-watchdog", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def look(self) -> None:
        """Look now, because something was heard."""
        self._look.set()

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        self._look.set()

    def _run(self) -> None:
        while not self._stopped:
            self._look.wait(min(1.0, self._max_step_s / 4))
            self._look.clear()
            if not self._stopped and not self._engine.is_healthy(self._max_step_s):
                log.critical("engine_dead", max_step_s=self._max_step_s)
                self._on_dead()
                return


class DrainKeeper:
    """Sees to it that a drain ends in time even if Celery's event loop is stuck in a dead connection.

    requested ──▶ wake the event loop ──▶ idle, or out of time ──▶ hand back ──▶ grace ──▶ exit
    """

    TICK_S = 0.05
    GRACE_S = 1.5

    def __init__(
        self,
        drain: Drain,
        *,
        wake: Callable[[], None],
        is_idle: Callable[[], bool],
        hand_back: Callable[[], None],
        exit_now: Callable[[int], None],
    ) -> None:
        self._drain = drain
        self._wake = wake
        self._is_idle = is_idle
        self._hand_back = hand_back
        self._exit_now = exit_now
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drain-keeper", daemon=True)

    def start(self) -> None:
        """Start waiting for the request to stop."""
        self._thread.start()

    def stop(self) -> None:
        """The process ends by itself: do not end it."""
        self._ended.set()

    def _run(self) -> None:
        self._drain.requested.wait()
        log.info("drain_began", drain_s=self._drain.remaining_s)
        self._wake()
        while not self._is_idle() and self._drain.remaining_s > 0:
            if self._ended.wait(self.TICK_S):
                return
        # On a thread of its own: with Postgres out of reach it takes as long as a connection does to fail.
        threading.Thread(target=self._hand_back, name="hand-back", daemon=True).start()
        if not self._ended.wait(self.GRACE_S):
            log.warning("drain_forced")
            self._exit_now(0)

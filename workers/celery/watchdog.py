"""Two watchdog threads that work during a hang: one checks the engine, the other enforces the time limit of a drain.

Neither does the work that it watches. When a longer wait would not help, the process ends at once: its jobs were handed
back, and the leases of the others expire.
"""

import threading
from collections.abc import Callable

import structlog

from headrace.models.engine.protocol import AnyEngine
from headrace.workers.celery.thread_pool import Drain

log = structlog.get_logger(__name__)

EXIT_ENGINE_DEAD = 70  # EX_SOFTWARE


class EngineWatchdog:
    """Calls ``on_dead`` once, from its own thread, when the engine is not healthy any more.

    ``check_now`` is set by others to have the engine checked at once.
    """

    def __init__(
        self, engine: AnyEngine, *, max_step_s: float, on_dead: Callable[[], None], check_now: threading.Event
    ) -> None:
        self._engine = engine
        self._max_step_s = max_step_s
        self._on_dead = on_dead
        self._stopped = False
        self._check_now = check_now
        self._thread = threading.Thread(target=self._run, name="engine-watchdog", daemon=True)

    def start(self) -> None:
        """Start checking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop checking."""
        self._stopped = True
        self._check_now.set()

    def _run(self) -> None:
        while not self._stopped:
            self._check_now.wait(min(1.0, self._max_step_s / 4))
            self._check_now.clear()
            if not self._stopped and not self._engine.is_healthy(self._max_step_s):
                log.critical("engine_dead", max_step_s=self._max_step_s)
                self._on_dead()
                return


class DrainKeeper:
    """Ends a drain in time, even if Celery's event loop is stuck in a dead connection.

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
        """Start waiting for a request to stop."""
        self._thread.start()

    def stop(self) -> None:
        """Do nothing more: the process ends by itself."""
        self._ended.set()

    def _run(self) -> None:
        self._drain.requested.wait()
        log.info("drain_began", drain_s=self._drain.remaining_s)
        self._wake()
        while not self._is_idle() and self._drain.remaining_s > 0:
            if self._ended.wait(self.TICK_S):
                return
        # On another thread, because without Postgres it blocks until the connection fails.
        threading.Thread(target=self._hand_back, name="hand-back", daemon=True).start()
        if not self._ended.wait(self.GRACE_S):
            log.warning("drain_forced")
            self._exit_now(0)

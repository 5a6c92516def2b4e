"""The thread that enforces the time limit of a drain, also while Celery's event loop hangs.

When a longer wait would not help, the process ends at once: its jobs were handed back, and the leases of the others
expire.
"""

import threading
from collections.abc import Callable

import structlog

from headrace.workers.celery.thread_pool import Drain

log = structlog.get_logger(__name__)

EXIT_ENGINE_DEAD = 70  # EX_SOFTWARE


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

"""Measures how late the event loop runs a timer: what a request waits for besides its own work."""

import asyncio
from collections.abc import Callable

EVERY_S = 0.25


class LoopLag:
    """Calls ``observe`` with the lag in seconds, every ``EVERY_S`` seconds. Used on the event loop alone."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start measuring on the running loop."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(due := loop.time() + EVERY_S, self._turn, loop, due)

    def stop(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._observe(max(0.0, loop.time() - due))
        self.start()

"""Wakes Celery's event loop from other threads, when a worker that was full has room again."""

from collections.abc import Callable


class LoopWaker:
    """Wakes the loop only if it waits for room. Before ``attach`` there is no loop, and waking does nothing."""

    def __init__(self) -> None:
        self._wake: Callable[[], None] = _nothing
        self._is_waiting = False

    def attach(self, wake: Callable[[], None]) -> None:
        """Set the function that wakes the loop; called again after each reconnect, which brings a new loop."""
        self._wake = wake

    def wait_for_room(self) -> None:
        """Note that the loop is about to wait for room."""
        self._is_waiting = True

    def found_room(self) -> None:
        """Note that the loop does not wait after all."""
        self._is_waiting = False

    def room_made(self) -> None:
        """Wake the loop if it waits for room."""
        if self._is_waiting:
            self._is_waiting = False
            self._wake()

    def wake(self) -> None:
        """Wake the loop."""
        self._wake()


def _nothing() -> None:
    """There is no loop yet."""

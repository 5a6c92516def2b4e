"""A process that is started again a second after it ends, as systemd would: for every contestant alike."""

import time

from headrace.store.child_process import Child, Command

_AGAIN_S = 1.0


class Kept:
    """One such process. ``tend`` is called often, by the thread that started it."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._child = Child(command)
        self._again_at: float | None = None
        self.num_restarts = 0

    @property
    def pid(self) -> int | None:
        """None while it is down."""
        return self._child.pid if self._child.exit_code is None else None

    def tend(self) -> None:
        """Start it again if it is time."""
        if self._child.exit_code is None:
            return
        if self._again_at is None:
            self._again_at = time.monotonic() + _AGAIN_S
        elif time.monotonic() >= self._again_at:
            self._child, self._again_at = Child(self._command), None
            self.num_restarts += 1

    def stop(self) -> None:
        """End it for good, with everything in its session."""
        self._child.stop(5)
        self._child.kill()

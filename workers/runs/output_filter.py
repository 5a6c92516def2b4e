"""A guard in the way of one attempt's deltas: what of them may be shown, as frames of their own numbers.

    deltas 1 2 3 4 5 ──▶ guard ──▶ frames 1   2 3        a number is taken only by what is shown
                           └─ blocks ──▶ the request is ended, nothing more is shown

A delta that is missing shuts the gate, since the guard cannot know what stood there; readers have the rest from
Postgres when the job has ended.
"""

from collections.abc import Callable

import structlog

from policy.outputs import GuardedOutput
from store.streams.stream_log import Frame

log = structlog.get_logger(__name__)


class StreamGate:
    """Lets frames pass in order, on the one thread that publishes them."""

    def __init__(self, guard: GuardedOutput, on_blocked: Callable[[], object]) -> None:
        self._guard = guard
        self._on_blocked = on_blocked
        self._num_taken = 0
        self._num_shown = 0
        self._is_shut = False

    def passed(self, frame: Frame) -> Frame | None:
        """Return what is shown in the frame's place, if anything is. Raises nothing."""
        if self._is_shut or frame.seq != self._num_taken + 1:
            self._is_shut = True
            return None
        self._num_taken += 1
        try:
            text = self._guard.feed(frame.text or "")
            if self._guard.blocked_by is not None:
                self._is_shut = True
                self._on_blocked()
        except Exception as error:  # noqa: BLE001 - the other jobs' frames go on, and this one's outcome is decided elsewhere
            self._is_shut = True
            log.error("gate_failed", job_id=frame.job_id, epoch=frame.epoch, error=type(error).__name__)
            return None
        if not text:
            return None
        self._num_shown += 1
        return Frame(frame.job_id, frame.epoch, self._num_shown, text)

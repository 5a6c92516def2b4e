"""Filters the deltas of one attempt by the tenant's policy, and numbers the frames that are shown.

    deltas 1 2 3 4 5 ──▶ guard ──▶ frames 1   2 3        only shown frames have numbers
                           └─ blocks ──▶ the request is cancelled, no more frames are shown

After a missing delta no more frames are shown, because the guard cannot know its text. Readers get the rest from
Postgres when the job has ended.
"""

from collections.abc import Callable

import structlog

from policy.outputs import GuardedOutput
from store.streams.stream_log import Frame

log = structlog.get_logger(__name__)


class StreamFilter:
    """Filters frames in order. Used by one thread."""

    def __init__(self, guard: GuardedOutput, on_blocked: Callable[[], object]) -> None:
        self._guard = guard
        self._on_blocked = on_blocked
        self._num_taken = 0
        self._num_shown = 0
        self._is_closed = False

    def passed(self, frame: Frame) -> Frame | None:
        """Return the frame that is shown instead, or None. Raises nothing."""
        if self._is_closed or frame.seq != self._num_taken + 1:
            self._is_closed = True
            return None
        self._num_taken += 1
        try:
            text = self._guard.feed(frame.text or "")
            if self._guard.blocked_by is not None:
                self._is_closed = True
                self._on_blocked()
        except Exception as error:  # noqa: BLE001 - frames of other jobs go on, and the outcome is decided elsewhere
            self._is_closed = True
            log.error("gate_failed", job_id=frame.job_id, epoch=frame.epoch, error=type(error).__name__)
            return None
        if not text:
            return None
        self._num_shown += 1
        return Frame(frame.job_id, frame.epoch, self._num_shown, text)

"""Limits how often new text of a request is shown, so that streaming leaves the processor to the model.

A delta costs some tenths of a millisecond of processor time, however long its text is: a frame in Redis, an event at
a server, a read at a client. So all running requests share one rate. With many requests each one is shown less often.
"""

LONGEST_S = 0.25
"""A pause this short is not noticeable to a person who reads the stream."""


class StreamThrottle:
    """Allows about ``deltas_per_s`` deltas of all requests together. If infinite, each token has its own delta."""

    def __init__(self, deltas_per_s: float) -> None:
        self._deltas_per_s = deltas_per_s

    def is_due(self, shown_at: float | None, now: float, num_running: int) -> bool:
        """Return True if a request that last showed text at ``shown_at`` may show more. The first text is not held."""
        return shown_at is None or now - shown_at >= min(LONGEST_S, num_running / self._deltas_per_s)

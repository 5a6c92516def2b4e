"""How often a request's new text is shown, so that telling of tokens leaves the machine to computing them.

A delta costs the same however long its text is: a frame in Redis, an event at a server, a read at a client, together
some tenths of a millisecond of processor time. So all running requests together show so many a second, and each of
many less often than each of a few. It knows counts and times.
"""

LONGEST_S = 0.25
"""Whoever reads along notices no pause that is this short."""


class Cadence:
    """At most about ``deltas_per_s`` deltas of all requests together, which may be infinite: then each token has its
    own.
    """

    def __init__(self, deltas_per_s: float) -> None:
        self._deltas_per_s = deltas_per_s

    def is_due(self, shown_at: float | None, now: float, num_running: int) -> bool:
        """Return True if a request that last showed text at ``shown_at`` may show some. The first is never held."""
        return shown_at is None or now - shown_at >= min(LONGEST_S, num_running / self._deltas_per_s)

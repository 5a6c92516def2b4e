"""Estimates output lengths from the last outputs that came to their end. It knows numbers of tokens alone.

Few requests use all of their ``max_tokens``, so blocks reserved for all of them would mostly stay empty. For a request
with ``n`` output tokens the estimate is the mean residual life: the average rest of those recent outputs that were
longer than ``n``. If the estimate is too low, a request is preempted and recomputed; no output is lost.
"""

from bisect import bisect_right, insort
from collections import deque
from itertools import accumulate

WINDOW = 256
FEWEST = 16
"""Outputs that must have ended before anything is estimated; until then each request counts with its ``max_tokens``."""


class LengthEstimator:
    """The lengths of the last ``WINDOW`` outputs."""

    def __init__(self) -> None:
        self._last: deque[int] = deque()
        self._sorted: list[int] = []
        self._sums: list[int] = []  # _sums[i] = sum(_sorted[i:])

    def record(self, num_tokens: int) -> None:
        """Record an output that came to its end with ``num_tokens`` tokens."""
        if len(self._last) == WINDOW:
            self._sorted.remove(self._last.popleft())
        self._last.append(num_tokens)
        insort(self._sorted, num_tokens)
        self._sums = [*accumulate(reversed(self._sorted))][::-1]

    def remaining(self, num_output: int, max_tokens: int) -> int:
        """Return how many more tokens to expect of an output with ``num_output`` tokens and at most ``max_tokens``."""
        most = max_tokens - num_output
        if len(self._last) < FEWEST:
            return most
        first = bisect_right(self._sorted, num_output)
        num_longer = len(self._sorted) - first
        if num_longer == 0:
            return min(most, num_output)  # longer than all recent ones: expect as much again
        return min(most, -(-(self._sums[first] - num_longer * num_output) // num_longer))

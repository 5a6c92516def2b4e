"""How long outputs get, learnt from the last ones that came to their end. It knows numbers of tokens alone.

Few requests use all of their ``max_tokens``, so room for all of it would mostly stay empty. What is expected instead
of a request that has ``n`` tokens already is what those of the last outputs that were longer than ``n`` had still to
come, on average (their mean residual life). It may turn out wrong: then somebody is preempted, and nothing is lost.
"""

from bisect import bisect_right, insort
from collections import deque
from itertools import accumulate

WINDOW = 256
FEWEST = 16
"""Outputs that must have ended before anything is expected; until then every request may use all that it asked for."""


class OutputLengths:
    """The lengths of the last outputs."""

    def __init__(self) -> None:
        self._last: deque[int] = deque()
        self._sorted: list[int] = []
        self._sums: list[int] = []  # of the lengths from each place of the sorted ones to the end

    def record(self, num_tokens: int) -> None:
        """Note that an output came to its end with ``num_tokens`` tokens."""
        if len(self._last) == WINDOW:
            self._sorted.remove(self._last.popleft())
        self._last.append(num_tokens)
        insort(self._sorted, num_tokens)
        self._sums = [*accumulate(reversed(self._sorted))][::-1]

    def remaining(self, num_output: int, max_tokens: int) -> int:
        """Return how many tokens more to expect of an output of ``num_output`` so far and ``max_tokens`` at most."""
        most = max_tokens - num_output
        if len(self._last) < FEWEST:
            return most
        first = bisect_right(self._sorted, num_output)
        num_longer = len(self._sorted) - first
        if num_longer == 0:
            return min(most, num_output)  # longer than all: it may well go on for as long again
        return min(most, -(-(self._sums[first] - num_longer * num_output) // num_longer))

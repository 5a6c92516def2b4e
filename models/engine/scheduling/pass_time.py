"""Limits the tokens of an encoder's pass by time: a request that arrives waits for the pass that is running.

What a token costs is learned from the passes themselves, as ``prefill_budget`` learns it from the steps of a language
model. The tokens include padding, because padding is computed too.
"""

from collections import deque
from math import inf

WINDOW = 16
"""Passes that are remembered: few, because the lengths of inputs change, and with them the cost of a token."""

FEWEST_TOKENS = 256
"""A pass is not made smaller than this: below it the fixed cost of a pass is felt."""

_FEWEST_MEASURED = FEWEST_TOKENS // 2
"""Smaller passes are not measured. A pass into which no further input of its length fits is larger than this."""


class PassTime:
    """Learns what a token costs. ``limit_s`` is the time of a pass in seconds; infinite: there is no limit."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._token_s: deque[float] = deque(maxlen=WINDOW)

    def record(self, num_tokens: int, seconds: float) -> None:
        """Learn from a pass over ``num_tokens`` tokens, with padding."""
        if num_tokens >= _FEWEST_MEASURED:
            self._token_s.append(seconds / num_tokens)

    def budget(self, most: int) -> int:
        """Return the tokens of a pass, at most ``most``. Before anything is known a pass is small."""
        if not self._token_s:
            return most if self._limit_s == inf else min(most, FEWEST_TOKENS)
        # The median: one pass that another process held up does not make the next ones small.
        token_s = sorted(self._token_s)[len(self._token_s) // 2]
        if self._limit_s >= most * token_s:
            return most
        return min(most, max(FEWEST_TOKENS, int(self._limit_s / token_s)))

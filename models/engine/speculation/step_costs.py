"""The cost of one more token in a decode pass, learned from the passes themselves. It knows counts and durations.

    seconds of a pass over n tokens  ≈  base + each · n

Where reading the weights dominates, ``each`` is almost 0. Where arithmetic dominates, a pass over a few tokens may take
as long as the same number of passes over one. Which one holds depends on the CPU, the model, its number format and the
number of tokens, so it is measured.
"""

from collections import deque

_KEPT = 8  # passes of each size; the fastest one counts, because the others were disturbed
_FORGOTTEN_AFTER = 512  # passes: contexts have grown since


class StepCosts:
    """Learns from decode passes over up to ``most_tokens`` tokens."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._num_recorded = 0
        self._by_size: dict[int, deque[tuple[int, float]]] = {}

    def record(self, num_tokens: int, seconds: float) -> None:
        """Learn from a pass."""
        if num_tokens <= self._most_tokens:
            self._num_recorded += 1
            kept = self._by_size.setdefault(num_tokens, deque(maxlen=_KEPT))
            kept.append((self._num_recorded, seconds))

    def line(self) -> tuple[float, float] | None:
        """Return (base, each) in seconds, neither below 0, by linear regression.

        None while passes of fewer than two sizes are known, or if they take no time.
        """
        least = {size: self._least(kept) for size, kept in self._by_size.items()}
        known = {size: seconds for size, seconds in least.items() if seconds is not None}
        if len(known) < 2:
            return None
        mean_size, mean_s = sum(known) / len(known), sum(known.values()) / len(known)
        spread = sum((size - mean_size) ** 2 for size in known)
        each = sum((size - mean_size) * (seconds - mean_s) for size, seconds in known.items()) / spread
        each = min(max(each, 0.0), mean_s / mean_size)
        return (mean_s - each * mean_size, each) if mean_s else None

    def _least(self, kept: "deque[tuple[int, float]]") -> float | None:
        recent = [seconds for number, seconds in kept if self._num_recorded - number < _FORGOTTEN_AFTER]
        return min(recent, default=None)

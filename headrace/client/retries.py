"""When a request is repeated: the pauses after failures in a row."""

import random
from collections.abc import Callable

from headrace.client.errors import ClientError

FIRST_S, LONGEST_S = 0.25, 8.0
"""The pause after the first failure, and the longest; each is twice the one before, less up to half at random."""

_LONGEST_RETRY_AFTER_S = 120.0
_WORTH_A_WARNING_S = 1.0

Warn = Callable[[str], None]


class Retries:
    """The failures in a row of one request or stream, at most ``most``."""

    def __init__(self, most: int, on_warning: Warn) -> None:
        self.most = most
        self._on_warning = on_warning
        self._num_failures = 0

    def reset(self) -> None:
        """Note a success."""
        self._num_failures = 0

    def pause_s(self, error: ClientError) -> float:
        """Return the pause before the next try; raise ``error`` if there is none."""
        asked_s = error.retry_after_s or 0.0
        if not error.is_transient or self._num_failures >= self.most or asked_s > _LONGEST_RETRY_AFTER_S:
            raise error
        longest_s = min(LONGEST_S, FIRST_S * 2**self._num_failures)
        jitter_s = random.uniform(longest_s / 2, longest_s)  # noqa: S311 - not a secret: it only spreads repeats
        pause_s = max(asked_s, jitter_s)
        self._num_failures += 1
        if pause_s >= _WORTH_A_WARNING_S:
            self._on_warning(f"{error.message}; again in {pause_s:.0f} s")
        return pause_s

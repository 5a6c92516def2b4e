"""When a request is repeated: the pauses after failures in a row."""

import random
import time
from collections.abc import Callable

from headrace.client.errors import ClientError

FIRST_S, LONGEST_S = 0.25, 8.0
"""The pause after the first failure, and the longest; each is twice the one before, less up to half at random."""

OUTAGE_S = 300.0
"""How long a waiter without a limit of its own waits for a server that has answered before and is away now."""

_LONGEST_RETRY_AFTER_S = 120.0
_WORTH_A_WARNING_S = 1.0

Warn = Callable[[str], None]


class Retries:
    """The failures in a row of one request or stream: at most ``most``, or for a time.

    ``until`` (of ``time.monotonic``): failures are repeated until then, whatever their number. ``outage_s``: without
    ``until``, more than ``most`` failures are repeated for so many seconds after the first one.
    """

    def __init__(self, most: int, on_warning: Warn, *, until: float | None = None, outage_s: float = 0.0) -> None:
        self._most = most
        self._on_warning = on_warning
        self._until = until
        self._outage_s = outage_s
        self._num_failures = 0
        self._failing_since = 0.0

    def be_patient(self) -> None:
        """Note that the server has answered: its address is right, so an outage is waited for."""
        self._outage_s = OUTAGE_S

    def reset(self) -> None:
        """Note a success."""
        self._num_failures = 0

    def pause_s(self, error: ClientError) -> float:
        """Return the pause before the next try; raise ``error`` if there is none."""
        now = time.monotonic()
        if self._num_failures == 0:
            self._failing_since = now
        asked_s = error.retry_after_s or 0.0
        if not error.is_transient or self._is_over(now) or asked_s > _LONGEST_RETRY_AFTER_S:
            raise error
        longest_s = min(LONGEST_S, FIRST_S * 2**self._num_failures)
        jitter_s = random.uniform(longest_s / 2, longest_s)  # noqa: S311 - not a secret: it only spreads repeats
        pause_s = max(asked_s, jitter_s)
        if self._until is not None:
            pause_s = min(pause_s, self._until - now)
        self._num_failures += 1
        if pause_s >= _WORTH_A_WARNING_S:
            self._on_warning(f"{error.message}; again in {pause_s:.0f} s")
        return pause_s

    def _is_over(self, now: float) -> bool:
        if self._until is not None:
            return now >= self._until
        return self._num_failures >= self._most and now >= self._failing_since + self._outage_s

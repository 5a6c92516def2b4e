"""CPU time limits for scanning a text, so that the patterns or texts of one tenant cannot block other tenants."""

import time
from collections.abc import Callable

SECONDS = 2.0
SECONDS_A_CHARACTER = 4e-6
"""For a whole text. Ordinary texts take a tenth of that, texts of numbers only up to half."""

OUTPUT_SECONDS = 1.0
OUTPUT_SECONDS_A_CHARACTER = 2e-4
"""For a text in pieces. Each piece is scanned together with the held-back text. Ordinary texts take a twentieth."""


_SELDOM = 16
_SELDOM_RUN = 8
SHORT = 256


class ScanTooLong(Exception):
    """Scanning a text took more CPU time than the limit. The scan is incomplete, so the text must not pass."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"scanning this text for the policy took more than {seconds:.1f} s of CPU time: send less text at once, or "
            "give the policy simpler patterns"
        )


class Budget:
    """The CPU seconds for all texts of one input or output: a fixed part, and a part for each character.

    The time is that of the scanning thread. Parts may run in different threads, but not at the same time.
    """

    def __init__(
        self,
        seconds: float = SECONDS,
        *,
        a_character: float = SECONDS_A_CHARACTER,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._seconds = seconds
        self._a_character = a_character
        self._clock = clock
        self._used = 0.0
        self._since: float | None = None
        self._num_asked = 0
        self._num_runs = 0
        self._times = 1

    def begin(self, num_characters: int) -> None:
        """Start counting, and add the time for ``num_characters``. Only every eighth short piece is measured.

        Reading the clock twice costs a tenth of the scan of a short piece.
        """
        self._seconds += num_characters * self._a_character
        self._num_runs += 1
        self._times = 1 if num_characters >= SHORT else _SELDOM_RUN
        is_counted = self._times == 1 or self._num_runs % _SELDOM_RUN == 0
        self._since = self._clock() if is_counted else None

    def end(self) -> None:
        """Stop counting."""
        if self._since is not None:
            self._used += (self._clock() - self._since) * self._times
            self._since = None

    def check_often(self) -> None:
        """Call ``check`` every sixteenth time, because reading the clock costs a microsecond."""
        self._num_asked += 1
        if self._num_asked % _SELDOM == 0:
            self.check()

    def check(self) -> None:
        """Raise ScanTooLong if no time is left."""
        if self._since is not None and self._used + self._clock() - self._since > self._seconds:
            raise ScanTooLong(self._seconds)


def output_budget() -> Budget:
    """Return the budget of one output, which comes in pieces."""
    return Budget(OUTPUT_SECONDS, a_character=OUTPUT_SECONDS_A_CHARACTER)

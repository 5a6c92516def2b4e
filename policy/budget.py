"""How much CPU time looking at one text may take, so that no tenant's patterns and no text stop the others."""

import time
from collections.abc import Callable

SECONDS = 2.0
SECONDS_A_CHARACTER = 4e-6
"""Of a whole text. Ordinary ones take a tenth of that, those of numbers alone up to half."""

OUTPUT_SECONDS = 1.0
OUTPUT_SECONDS_A_CHARACTER = 2e-4
"""Of a text in pieces, of which each is looked at with what is held back. Ordinary ones take a twentieth."""


_SELDOM = 16
_SELDOM_RUN = 8
_SHORT = 256


class ScanTooLong(Exception):
    """Looking at a text took more CPU time than it may. The text has not been looked at and must not pass."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"looking through this text for what the policy names took more than {seconds:.1f} s of CPU time: send "
            "less text at once, or give the policy simpler patterns"
        )


class Budget:
    """CPU seconds of whichever thread looks, for all texts of one input or output: some to begin with, and more with
    every character. One thread at a time; parts may run in different threads.
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
        """Count the time from here on, with ``num_characters`` more to look at; of short pieces that of every eighth.

        Asking for the time twice is a tenth of what a piece of a stream costs.
        """
        self._seconds += num_characters * self._a_character
        self._num_runs += 1
        self._times = 1 if num_characters >= _SHORT else _SELDOM_RUN
        is_counted = self._times == 1 or self._num_runs % _SELDOM_RUN == 0
        self._since = self._clock() if is_counted else None

    def end(self) -> None:
        """Stop counting."""
        if self._since is not None:
            self._used += (self._clock() - self._since) * self._times
            self._since = None

    def check_often(self) -> None:
        """The same as ``check`` every sixteenth time: asking for the time costs a microsecond."""
        self._num_asked += 1
        if self._num_asked % _SELDOM == 0:
            self.check()

    def check(self) -> None:
        """Raise ScanTooLong if nothing is left."""
        if self._since is not None and self._used + self._clock() - self._since > self._seconds:
            raise ScanTooLong(self._seconds)


def output_budget() -> Budget:
    """Return the budget of one output, which comes in pieces."""
    return Budget(OUTPUT_SECONDS, a_character=OUTPUT_SECONDS_A_CHARACTER)

"""Limits the prompt tokens of a step by time, so that prefill hardly slows down running streams.

    one step:  | decode rows, d seconds | prompt tokens, c seconds each |     d and c are learned from the steps
               └────────── at most stretch × d ─────────────────────────┘

Chunked prefill alone limits a step by its number of tokens, whatever they cost. Sarathi-Serve (Agrawal et al. 2024)
limits it by time, with a profile that is measured beforehand; here the steps themselves are the profile. The limit is
lifted when the requests that wait for their first token are more than a third of the running streams: in a burst a slow
prefill keeps slots idle, which costs all requests more than a longer gap costs the few streams.
"""

from collections import deque
from math import inf
from statistics import median

WINDOW = 16
"""Steps of each kind that are remembered: few, because rows and contexts change."""

FEWEST_TOKENS = 16
"""Prompt tokens that a step always allows, however slow they are. Smaller chunks are not measured."""

_MOST_WAITING = 1 / 3
"""Waiting requests per running stream (or one request) above which nothing limits a step's time."""

BACKGROUND_S = 0.015
"""Background prefill runs in chunks of about this long: an interactive request that arrives waits for one chunk."""

_LEAST_SHARE = 0.1  # of a step's time that its prompt tokens are assumed to take at least


class PrefillBudget:
    """Learns the duration of steps. ``stretch`` may be infinite: then there is no limit."""

    def __init__(self, stretch: float) -> None:
        self._stretch = stretch
        self._decode_s: deque[float] = deque(maxlen=WINDOW)
        self._decode_rows: deque[int] = deque(maxlen=WINDOW)
        self._token_s: deque[float] = deque(maxlen=WINDOW)  # of a prompt token beside streams
        self._token_alone_s: deque[float] = deque(maxlen=WINDOW)  # in larger chunks, so a little faster

    def record(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        """Learn from a step with ``num_decode`` decode rows and ``num_prefill`` prompt tokens."""
        if not num_prefill:
            self._decode_s.append(seconds)
            self._decode_rows.append(num_decode)
        elif num_prefill >= FEWEST_TOKENS and not num_decode:
            self._token_alone_s.append(seconds / num_prefill)
        elif num_prefill >= FEWEST_TOKENS and self._decode_s and 2 * num_decode >= median(self._decode_rows):
            # If most streams were not in the step, the time of its decode rows is not known.
            prompt_s = max(seconds - median(self._decode_s), _LEAST_SHARE * seconds)
            self._token_s.append(prompt_s / num_prefill)

    def budget(self, num_decoding: int, num_others: int, most: int) -> int:
        """Return how many prompt tokens, at most ``most``, may enter beside ``num_decoding`` streams.

        ``num_others`` are the active requests without a token yet, running or waiting.
        """
        if num_others > max(1.0, _MOST_WAITING * num_decoding):
            return most
        token_s = self._prompt_token_s()
        if not (num_decoding and self._decode_s and token_s):
            return most
        spare_s = (self._stretch - 1) * median(self._decode_s)
        return int(min(most, max(FEWEST_TOKENS, spare_s / token_s)))

    def background_budget(self, *, is_interactive: bool) -> int | None:
        """Return how many background prompt tokens may be in a step; None if there is no limit or nothing is known.

        ``is_interactive``: the step has interactive prefill too.
        """
        token_s = self._prompt_token_s()
        if self._stretch == inf or not token_s:
            return None
        return FEWEST_TOKENS if is_interactive else max(FEWEST_TOKENS, int(BACKGROUND_S / token_s))

    def _prompt_token_s(self) -> float:
        """Return the seconds of a prompt token, 0 while unknown."""
        # The 75th percentile: a gap of two steps is noticed, a chunk that is a little smaller than possible is not.
        known = sorted(self._token_s or self._token_alone_s)
        return known[len(known) * 3 // 4] if known else 0.0

"""How many prompt tokens may enter beside running streams, so that these hardly notice. It knows counts and durations.

    one step:  | decode rows, d seconds | prompt tokens, c seconds each |     what is learnt is d and c
               └────────── at most stretch × d ─────────────────────────┘

Chunked prefill alone bounds a step by its tokens, whatever these cost; this bounds it by time, as Sarathi-Serve
(Agrawal et al. 2024) does with a profile that is measured beforehand. Here the steps themselves are the profile. When
more than a third as many requests wait for their first token as there are streams to disturb, the streams give way:
in a burst prompts that enter slowly keep slots idle, and cost everybody more than a longer gap costs the few.
"""

from collections import deque
from math import inf
from statistics import median

WINDOW = 16
"""Steps of each kind that are remembered: few, for rows and contexts change."""

FEWEST_TOKENS = 16
"""Prompts always get so many a step, however slow they are; from fewer nothing is learnt."""

_MOST_WAITING = 1 / 3
"""As many others as a share of the streams, or one, may wait; if it is more, nothing bounds a step's time."""

BACKGROUND_S = 0.015
"""Prompts that nobody waits for enter in pieces of about so long: who comes meanwhile waits for one piece."""

_LEAST_SHARE = 0.1  # of a step's time that the prompt tokens in it surely took


class Pacer:
    """Learns from steps how long they take. ``stretch`` may be infinite: then there is no bound."""

    def __init__(self, stretch: float) -> None:
        self._stretch = stretch
        self._decode_s: deque[float] = deque(maxlen=WINDOW)
        self._decode_rows: deque[int] = deque(maxlen=WINDOW)
        self._token_s: deque[float] = deque(maxlen=WINDOW)  # beside streams
        self._token_alone_s: deque[float] = deque(maxlen=WINDOW)  # in larger pieces, and so a little faster

    def record(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        """Learn from a step with so many decode rows and prompt tokens."""
        if not num_prefill:
            self._decode_s.append(seconds)
            self._decode_rows.append(num_decode)
        elif num_prefill >= FEWEST_TOKENS and not num_decode:
            self._token_alone_s.append(seconds / num_prefill)
        elif num_prefill >= FEWEST_TOKENS and self._decode_s and 2 * num_decode >= median(self._decode_rows):
            # Where most of the streams sat out, what the others took is not known.
            prompt_s = max(seconds - median(self._decode_s), _LEAST_SHARE * seconds)
            self._token_s.append(prompt_s / num_prefill)

    def budget(self, num_decoding: int, num_others: int, most: int) -> int:
        """Return how many prompt tokens, up to ``most``, may enter beside ``num_decoding`` streams.

        ``num_others`` are the requests inside that have no token yet, those without a place among them.
        """
        if num_others > max(1.0, _MOST_WAITING * num_decoding):
            return most
        token_s = self._prompt_token_s()
        if not (num_decoding and self._decode_s and token_s):
            return most
        spare_s = (self._stretch - 1) * median(self._decode_s)
        return int(min(most, max(FEWEST_TOKENS, spare_s / token_s)))

    def background_budget(self, *, is_waited_for: bool) -> int | None:
        """Return how many prompt tokens of the background may be in a step; None if there is no bound or none is known.

        ``is_waited_for``: somebody else waits for a first token in it.
        """
        token_s = self._prompt_token_s()
        if self._stretch == inf or not token_s:
            return None
        return FEWEST_TOKENS if is_waited_for else max(FEWEST_TOKENS, int(BACKGROUND_S / token_s))

    def _prompt_token_s(self) -> float:
        """Return what a prompt token takes, 0 while that is not known."""
        # The slower quarter: a gap of twice a step is noticed, one that is a little shorter than it might be is not.
        known = sorted(self._token_s or self._token_alone_s)
        return known[len(known) * 3 // 4] if known else 0.0

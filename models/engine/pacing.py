"""How many prompt tokens may enter beside running streams, so that these hardly notice. It knows counts and durations.

    one step:  | decode rows, d seconds | prompt tokens, c seconds each |     what is learnt is d and c
               └────────── at most stretch × d ─────────────────────────┘

Chunked prefill alone bounds a step by its tokens, whatever these cost; this bounds it by time, as Sarathi-Serve
(Agrawal et al. 2024) does with a profile that is measured beforehand. Here the steps themselves are the profile. When
more requests wait for their first token than there are streams to disturb, the streams give way in that proportion:
else one stream would hold up thirty prompts.
"""

from collections import deque
from statistics import median

WINDOW = 16
"""Steps of each kind that are remembered: few, for rows and contexts change."""

FEWEST_TOKENS = 16
"""A prompt always gets so many a step, however slow they are."""

_LEAST_SHARE = 0.1  # of a step's time that the prompt tokens in it surely took


class Pacer:
    """Learns from steps how long they take. ``stretch`` may be infinite: then there is no bound."""

    def __init__(self, stretch: float) -> None:
        self._stretch = stretch
        self._decode_s: deque[float] = deque(maxlen=WINDOW)
        self._prefills: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def record(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        """Learn from a step with so many decode rows and prompt tokens."""
        if num_prefill:
            alone_s = median(self._decode_s) if num_decode and self._decode_s else 0.0
            self._prefills.append((num_prefill, max(seconds - alone_s, _LEAST_SHARE * seconds)))
        elif num_decode:
            self._decode_s.append(seconds)

    def budget(self, num_decoding: int, num_others: int, most: int) -> int:
        """Return how many prompt tokens, up to ``most``, may enter beside ``num_decoding`` streams.

        ``num_others`` are the requests inside that have no token yet, those without a place among them.
        """
        token_s = self._token_s()
        if not (num_decoding and self._decode_s and token_s):
            return most
        spare_s = (self._stretch - 1) * median(self._decode_s) * max(1.0, num_others / num_decoding)
        return int(min(most, max(FEWEST_TOKENS, spare_s / token_s)))

    def _token_s(self) -> float:
        num_tokens = sum(tokens for tokens, _ in self._prefills)
        return sum(seconds for _, seconds in self._prefills) / num_tokens if num_tokens else 0.0

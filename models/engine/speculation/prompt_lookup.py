"""Prompt lookup: guesses at what comes next, from what came after the same words before. It knows tokens alone.

    ... the river bends | at the mill ...        ... the river bends | ?
                          └──────────── drafts ─────────────────────▶ at the mill

Saxena 2023 (prompt lookup decoding). An index of the places after each pair of tokens, kept up to date as tokens come,
makes a guess cost the same whatever the length of the text.
"""

from collections.abc import Sequence

NUM_MATCHED = 2  # tokens that must be the same; a longer match goes before a shorter one
_MAX_MATCHED = 8
_MAX_PLACES = 4  # the latest places of a pair that are compared


class Lookup:
    """The text of one request so far, with an index."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], list[int]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add the next tokens of the text."""
        for token in tokens:
            if len(self._tokens) >= NUM_MATCHED:
                # Now that it is followed by something, the end of the text so far can be found.
                places = self._after.setdefault(tuple(self._tokens[-NUM_MATCHED:]), [])
                places.append(len(self._tokens))
                del places[:-_MAX_PLACES]
            self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """Return up to ``most`` tokens that followed the longest, and of those the latest, match of the text's end."""
        places = self._after.get(tuple(self._tokens[-NUM_MATCHED:]), ())
        if most < 1 or not places:
            return []
        start = max(reversed(places), key=self._num_matching)
        drafts: list[int] = []
        for place in range(start, start + most):
            # Beyond the end of the text stands what was drafted: a text that repeats itself goes on doing so.
            drafts.append(self._tokens[place] if place < len(self._tokens) else drafts[place - len(self._tokens)])
        return drafts

    def _num_matching(self, place: int) -> int:
        """Return how many tokens before ``place`` are those at the end of the text."""
        tokens, end = self._tokens, len(self._tokens)
        count = NUM_MATCHED
        while count < min(_MAX_MATCHED, place) and tokens[place - count - 1] == tokens[end - count - 1]:
            count += 1
        return count

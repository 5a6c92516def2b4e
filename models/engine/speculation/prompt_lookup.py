"""Prompt lookup: drafts the next tokens from the text after an earlier match of the last ones. It knows tokens alone.

    ... the river bends | at the mill ...        ... the river bends | ?
                          └──────────── drafts ─────────────────────▶ at the mill

Saxena 2023 (prompt lookup decoding). An index of the positions after each pair of tokens, updated with each token,
makes a draft cost the same whatever the length of the text.
"""

from collections.abc import Sequence

NUM_MATCHED = 2  # tokens that must match; a longer match is preferred
_MAX_MATCHED = 8
_MAX_POSITIONS = 4  # the latest positions of a pair that are compared


class PromptLookup:
    """The tokens of one request so far, with an index."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], list[int]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        for token in tokens:
            if len(self._tokens) >= NUM_MATCHED:
                # A token follows the last pair now, so this pair can be found.
                positions = self._after.setdefault(tuple(self._tokens[-NUM_MATCHED:]), [])
                positions.append(len(self._tokens))
                del positions[:-_MAX_POSITIONS]
            self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """Return up to ``most`` tokens after the longest match of the text's end; of equal ones, after the latest."""
        positions = self._after.get(tuple(self._tokens[-NUM_MATCHED:]), ())
        if most < 1 or not positions:
            return []
        start = max(reversed(positions), key=self._num_matching)
        drafts: list[int] = []
        for position in range(start, start + most):
            # Past the end of the text the drafts themselves are copied: a repeating text continues to repeat.
            is_known = position < len(self._tokens)
            drafts.append(self._tokens[position] if is_known else drafts[position - len(self._tokens)])
        return drafts

    def _num_matching(self, position: int) -> int:
        """Return how many tokens before ``position`` are those at the end of the text."""
        tokens, end = self._tokens, len(self._tokens)
        count = NUM_MATCHED
        while count < min(_MAX_MATCHED, position) and tokens[position - count - 1] == tokens[end - count - 1]:
            count += 1
        return count

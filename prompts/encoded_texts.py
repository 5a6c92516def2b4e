"""A text or a pair of texts as tokens, with the place of each token in its text."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """A text, or a pair of texts, as one sequence of token ids with the special tokens around them.

    For each token: ``type_ids`` are what the model is told of its place in a pair. ``text_of`` is 0 or 1, the text that
    the token is of, None for a special token. ``offsets`` are the start and end of its characters in that text.
    """

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    text_of: tuple[int | None, ...]
    offsets: tuple[tuple[int, int], ...]

    def keep(self, indices: Sequence[int]) -> "EncodedTexts":
        """Return the sequence of the tokens at these indices."""
        parts = (self.ids, self.type_ids, self.text_of, self.offsets)
        ids, type_ids, text_of, offsets = (tuple(part[index] for index in indices) for part in parts)
        return EncodedTexts(ids, type_ids, text_of, offsets)  # type: ignore[arg-type]  # of four types, in order

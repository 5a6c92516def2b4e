"""The places in a pass where a token is chosen: one for each row that samples, and one after each of its drafts.

A draft is checked by choosing the token of its place as if nothing had been drafted, and comparing. For a draft that is
no chance event this is rejection sampling (Leviathan et al. 2023): it is accepted with its own probability, and else
the token that was chosen instead comes from what is left of the distribution. So drafts change no token, whatever the
seed, the penalties or the grammar.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from models.engine.runner import Row


@dataclass(frozen=True, slots=True)
class Place:
    """The token after the output of ``row`` and the first ``num_drafts`` of its drafts."""

    row: Row
    num_drafts: int

    @property
    def number(self) -> int:
        """How many tokens the request has generated before this one."""
        return len(self.row.output) + self.num_drafts

    @property
    def drafts(self) -> Sequence[int]:
        """The drafts before this place."""
        return self.row.drafts[: self.num_drafts]


def places_of(rows: Sequence[Row]) -> list[Place]:
    """Return the places of rows that sample, those of a row side by side."""
    return [Place(row, num_drafts) for row in rows for num_drafts in range(len(row.drafts) + 1)]


def num_accepted(drafts: Sequence[int], chosen: Sequence[int]) -> int:
    """Return how many drafts hold, when ``chosen`` are the tokens of a row's places: the first one and those after."""
    pairs = zip(drafts, chosen, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

"""The positions in a pass where a token is sampled: one for each row that samples, and one after each of its drafts.

To verify a draft, the token of its position is sampled as usual and compared with the draft. For a deterministic draft
this is rejection sampling (Leviathan et al. 2023): the draft is accepted with its own probability, and otherwise the
sampled token follows the rest of the distribution. So drafts never change the output, for any request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from headrace.models.engine.runner import Row


@dataclass(frozen=True, slots=True)
class SamplePosition:
    """The position after the output of ``row`` and the first ``num_drafts`` of its drafts."""

    row: Row
    num_drafts: int

    @property
    def number(self) -> int:
        """The number of tokens that the request has generated before this position."""
        return len(self.row.output) + self.num_drafts

    @property
    def drafts(self) -> Sequence[int]:
        """The drafts before this position."""
        return self.row.drafts[: self.num_drafts]


def sample_positions(rows: Sequence[Row]) -> list[SamplePosition]:
    """Return the positions of rows that sample. The positions of a row are adjacent."""
    return [SamplePosition(row, num_drafts) for row in rows for num_drafts in range(len(row.drafts) + 1)]


def num_accepted(drafts: Sequence[int], chosen: Sequence[int]) -> int:
    """Return the number of accepted drafts. ``chosen`` are the tokens that were sampled at the positions of the row."""
    pairs = zip(drafts, chosen, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

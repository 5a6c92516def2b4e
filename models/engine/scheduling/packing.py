"""Which inputs of which requests an encoder computes next, and which of them together. Pure; lengths are in tokens.

An encoder has no state from step to step, so whom to serve is decided anew each time: the oldest request always gets a
place, then whoever had least so far, the better class first. What was chosen is cut into passes of similar lengths,
because every row of a pass is padded to its longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PASS_COST = 128
"""So many padded tokens cost about as much as another pass over the model."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """A request that waits: the lengths of the inputs that it lacks, one at least, how many tokens it was
    served, and its class."""

    lengths: Sequence[int]
    served: int = 0
    class_rank: int = 0


def choose(claimants: Sequence[Claimant], budget: int) -> list[int]:
    """Return how many of each claimant's next inputs to compute, taken in turn; the claimants come oldest first.

    Together they have at most ``budget`` tokens, or are one input.
    """
    order = sorted(range(1, len(claimants)), key=lambda i: (claimants[i].class_rank, claimants[i].served, i))
    turn = [*range(min(1, len(claimants))), *order]
    chosen = [0] * len(claimants)
    spent = 0
    while turn:
        for place in turn:
            length = claimants[place].lengths[chosen[place]]
            if spent and spent + length > budget:
                return chosen
            chosen[place] += 1
            spent += length
        turn = [place for place in turn if chosen[place] < len(claimants[place].lengths)]
    return chosen


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return the places of ``lengths`` in passes: similar lengths together, the longest first.

    A pass, padded, has at most ``budget`` tokens (or is one input alone), of which at most PASS_COST are padding.
    """
    passes: list[list[int]] = []
    longest = padding = 0
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        gap = longest - lengths[place]
        if passes and padding + gap <= PASS_COST and longest * (len(passes[-1]) + 1) <= budget:
            passes[-1].append(place)
            padding += gap
        else:
            passes.append([place])
            longest, padding = lengths[place], 0
    return passes

"""Chooses the inputs that an encoder computes next, and packs them into passes. Pure; lengths are in tokens.

An encoder keeps no state between steps, so the choice is made anew in each step. The oldest request always gets an
input computed. Then follow the better classes, in a class the request with the fewest computed tokens. Chosen inputs
are packed into passes of similar lengths, because every row of a pass is padded to the longest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PASS_COST = 128
"""This many padding tokens cost about as much as one more pass."""


@dataclass(frozen=True, slots=True)
class PendingInputs:
    """A request with inputs to compute: their lengths (at least one), the tokens computed so far, and its class."""

    lengths: Sequence[int]
    served: int = 0
    class_rank: int = 0


def choose(requests: Sequence[PendingInputs], budget: int) -> list[int]:
    """Return how many of each request's next inputs to compute, in round-robin order. Requests come oldest first.

    The chosen inputs have at most ``budget`` tokens together, or are one input.
    """
    order = sorted(range(1, len(requests)), key=lambda i: (requests[i].class_rank, requests[i].served, i))
    turn = [*range(min(1, len(requests))), *order]
    chosen = [0] * len(requests)
    spent = 0
    while turn:
        for index in turn:
            length = requests[index].lengths[chosen[index]]
            if spent and spent + length > budget:
                return chosen
            chosen[index] += 1
            spent += length
        turn = [index for index in turn if chosen[index] < len(requests[index].lengths)]
    return chosen


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return passes as indices of ``lengths``: similar lengths together, the longest first.

    A pass has at most ``budget`` tokens with its padding, of which at most PASS_COST are padding; or it is one input.
    """
    passes: list[list[int]] = []
    longest = padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        gap = longest - lengths[index]
        if passes and padding + gap <= PASS_COST and longest * (len(passes[-1]) + 1) <= budget:
            passes[-1].append(index)
            padding += gap
        else:
            passes.append([index])
            longest, padding = lengths[index], 0
    return passes


def in_order(passes: Sequence[Sequence[int]], ranks: Sequence[tuple[int, int]]) -> list[Sequence[int]]:
    """Return the passes with the best inputs first. ``ranks``: of each input its class and what its request has left.

    The pass of the first input, which is the oldest request's, is the first or the second: so that request gets on,
    even if the plan is dropped after two passes.
    """
    ordered = sorted(passes, key=lambda one: min(ranks[at] for at in one))
    at_oldest = next(at for at, one in enumerate(ordered) if 0 in one)
    if at_oldest > 1:
        ordered.insert(1, ordered.pop(at_oldest))
    return ordered

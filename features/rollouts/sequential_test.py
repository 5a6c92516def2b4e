"""A test that is valid at every look: bets on differences between two versions.

The hypothesis is that the mean of values in [-1, 1] is at most a *margin*, given everything before. A bet of the share
``stake`` of the capital on a value multiplies the capital by ``1 + stake * (value - margin)``. Under the hypothesis no
bet gains on average, so the capital, which starts at 1, reaches ``1 / alpha`` at any time with a probability of at most
``alpha`` (Ville's inequality). The capital is the *e-value*. Several stakes play at once, each with an equal part.

The capital depends on how often each value was seen, not on the order. So counts are all that is kept.

References: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024); Ramdas et al.,
"Game-theoretic statistics and safe anytime-valid inference" (2023).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Tally = Mapping[float, int]
"""How often each value in [-1, 1] was seen."""

_STAKES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)


def log_e_value(parts: Iterable[tuple[Tally, float]]) -> float:
    """Return the natural logarithm of the e-value against "each part's mean is at most its margin".

    Each part is a tally and its margin. -inf: no stake has capital left.
    """
    told = [(tally, margin) for tally, margin in parts if tally]
    return log_mean([sum(_log_capital(tally, margin, stake) for tally, margin in told) for stake in _STAKES])


def log_mean(logarithms: Sequence[float]) -> float:
    """Return the logarithm of the mean. A mean of e-values is an e-value: each player gets an equal part."""
    best = max(logarithms)
    if best == -math.inf:
        return best
    return best + math.log(sum(math.exp(one - best) for one in logarithms) / len(logarithms))


@dataclass(frozen=True, slots=True)
class GroupSums:
    """The values of one group: their number, their sum and the sum of their squares."""

    num: int = 0
    total: float = 0.0
    squares: float = 0.0

    def with_value(self, value: float) -> "GroupSums":
        """Return the sums with one more value."""
        return GroupSums(self.num + 1, self.total + value, self.squares + value * value)


def spread_between(groups: Sequence[GroupSums]) -> float | None:
    """Return the standard deviation of the groups' true means, estimated by the analysis of variance.

    The noise within the groups is subtracted. None if there are too few groups to tell.
    """
    groups = [group for group in groups if group.num]
    num = sum(group.num for group in groups)
    if len(groups) < 2 or num <= len(groups):
        return None
    mean = sum(group.total for group in groups) / num
    between = sum(group.num * (group.total / group.num - mean) ** 2 for group in groups) / (len(groups) - 1)
    within = sum(group.squares - group.total**2 / group.num for group in groups) / (num - len(groups))
    size = (num - sum(group.num**2 for group in groups) / num) / (len(groups) - 1)
    return math.sqrt(max(0.0, between - within) / size)


def effective_number(sizes: Iterable[int]) -> float:
    """Return the number of equally large groups that vary as much as groups of these sizes; 0 for none."""
    sizes = [size for size in sizes if size]
    return sum(sizes) ** 2 / sum(size**2 for size in sizes) if sizes else 0.0


def _log_capital(tally: Tally, margin: float, stake: float) -> float:
    capital = 0.0
    for value, count in tally.items():
        factor = 1 + stake * (value - margin)
        # A stake that a single value could ruin does not play: its part of the capital counts as lost.
        if 1 - stake * (1 + margin) <= 0:
            return -math.inf
        capital += count * math.log(factor)
    return capital

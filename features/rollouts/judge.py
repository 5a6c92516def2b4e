"""Decides from the evidence whether a candidate is worse than the stable version allows.

Each measure is a check of its own, at the level ``false_alarm`` divided by the number of checks. So a candidate within
all bounds is found bad with a probability of at most ``false_alarm``, at all looks together. That holds for pairs of
one tenant. For pairs of two tenants the margin is wider by what tenants differ, as far as placebo pairs show it.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from headrace.features.rollouts.bounds import Bounds
from headrace.features.rollouts.evidence import Evidence, MeasureEvidence
from headrace.features.rollouts.matched_pairs import MEASURES, bound_of
from headrace.features.rollouts.sequential_test import Tally, effective_number, log_e_value, log_mean, spread_between

__all__ = ["Bounds", "Check", "Verdict", "judge"]

_SPREADS = 3.0
"""Standard deviations of the mean of the tenants by which the margin of foreign pairs is wider."""

_UNKNOWN_SPREAD = 0.1
"""Spread of tenants while placebo pairs are of fewer than _FEW_CELLS groups of tenants."""

_FEW_CELLS = 5


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of the two versions. ``text`` says the result in a sentence.

    ``stable`` and ``candidate``: the usual values, a share or a geometric mean; None without a pair. ``log_e``: the
    decimal logarithm of the e-value; the check is bad from ``needed`` on.
    """

    name: str
    stable: float | None
    candidate: float | None
    bound: float
    num_pairs: int
    log_e: float
    needed: float
    decision: Literal["undecided", "good", "bad"]
    text: str

    @property
    def is_doubtful(self) -> bool:
        """True while the check is not decided, and what it has seen of the candidate is beyond the bound."""
        if self.decision != "undecided" or self.stable is None or self.candidate is None:
            return False
        measure = MEASURES[self.name]
        if measure.is_share:
            return self.candidate - self.stable > self.bound
        larger, smaller = (self.stable, self.candidate) if measure.less_is_worse else (self.candidate, self.stable)
        return larger > self.bound * smaller

    def as_json(self) -> dict[str, Any]:
        """Return the check as JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Verdict:
    """``is_bad``: at least one check has found the candidate worse, so the rollout is rolled back."""

    is_bad: bool
    checks: tuple[Check, ...] = ()

    @property
    def num_pairs(self) -> int:
        """The pairs of jobs that were compared, of the check that has most."""
        return max((check.num_pairs for check in self.checks), default=0)

    @property
    def doubts(self) -> str | None:
        """The sentences of the doubtful checks; None if there are none."""
        return "; ".join(check.text for check in self.checks if check.is_doubtful) or None

    @property
    def reason(self) -> str | None:
        """The sentences of the bad checks; None if there are none."""
        return "; ".join(check.text for check in self.checks if check.decision == "bad") or None


def judge(evidence: Evidence, bounds: Bounds) -> Verdict:
    """Return the verdict on the evidence."""
    checks = tuple(_check(name, evidence, bounds) for name in MEASURES)
    return Verdict(any(check.decision == "bad" for check in checks), checks)


def _check(name: str, evidence: Evidence, bounds: Bounds) -> Check:
    measure, found, bound = MEASURES[name], evidence.measures[name], bound_of(bounds, name)
    margin = measure.margin(bound)
    widening = _widening(evidence, found)
    needed = math.log(len(MEASURES) / bounds.false_alarm)
    log_e = _log_e(found.own, found.foreign, margin, widening)
    log_good = _log_e(_negated(found.own), _negated(found.foreign), -margin, widening)
    decision: Literal["undecided", "good", "bad"] = "undecided"
    if log_e >= needed:
        decision = "bad"
    elif log_good >= needed:
        decision = "good"
    stable = found.stable.usual(is_share=measure.is_share)
    candidate = found.candidate.usual(is_share=measure.is_share)
    return Check(
        name=name,
        stable=stable,
        candidate=candidate,
        bound=bound,
        num_pairs=found.candidate.num,
        log_e=max(log_e, -99.0) / math.log(10),
        needed=needed / math.log(10),
        decision=decision,
        text=_sentence(name, stable, candidate, bound, decision, found.candidate.num),
    )


def _log_e(own: Tally, foreign: Tally, margin: float, widening: float) -> float:
    # Foreign pairs with a wide margin would lose what own pairs gain, so half of the capital plays with own pairs only.
    both = log_e_value([(own, margin), (foreign, margin + widening)])
    return log_mean([log_e_value([(own, margin)]), both]) if foreign else both


def _negated(tally: Tally) -> Tally:
    return {-value: count for value, count in tally.items()}


def _widening(evidence: Evidence, found: MeasureEvidence) -> float:
    """Return what the mean of foreign pairs may differ only because their tenants are others."""
    if not found.foreign:
        return 0.0
    spread = spread_between(list(found.placebo.values()))
    if spread is None or len(found.placebo) < _FEW_CELLS:
        spread = max(spread or 0.0, _UNKNOWN_SPREAD)
    sides = (evidence.candidate_cells, evidence.stable_cells)
    return _SPREADS * spread * math.sqrt(sum(1 / effective_number(side.values()) for side in sides))


def _sentence(
    name: str, stable: float | None, candidate: float | None, bound: float, decision: str, num_pairs: int
) -> str:
    subject = name.replace("_", " ")
    if stable is None or candidate is None:
        return f"{subject}: no pair of jobs to compare"
    if MEASURES[name].is_share:
        seen = f"{_percent(candidate)} of the candidate's jobs, {_percent(stable)} of the stable version's"
        allowed = f"{_percent(bound)} more are allowed"
    else:
        seen = f"{candidate:.3g} with the candidate, {stable:.3g} with the stable version"
        allowed = f"a factor of {bound:g} is allowed"
    result = {"bad": "the candidate is worse", "good": "the candidate is within", "undecided": "not decided"}[decision]
    return f"{subject}: {seen} in {num_pairs} pairs; {allowed}: {result}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"

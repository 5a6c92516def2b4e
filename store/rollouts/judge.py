"""Decides whether a candidate is worse than the stable version. This first form decides nothing."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from store.rollouts.evidence import Evidence


class Bounds(BaseModel):
    """What the judge allows; the defaults are those of every rollout."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of the two versions. ``text`` says the result in a sentence."""

    name: str
    stable: float | None
    candidate: float | None
    decision: Literal["undecided", "good", "bad"]
    text: str

    def as_json(self) -> dict[str, Any]:
        """Return the check as JSON values."""
        return {name: getattr(self, name) for name in ("name", "stable", "candidate", "decision", "text")}


@dataclass(frozen=True, slots=True)
class Verdict:
    """``is_bad``: at least one check has found the candidate worse, so the rollout is rolled back."""

    is_bad: bool
    checks: tuple[Check, ...] = ()


def judge(evidence: Evidence, bounds: Bounds) -> Verdict:
    """Return the verdict on the evidence."""
    del evidence, bounds
    return Verdict(is_bad=False)

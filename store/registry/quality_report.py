"""The quality report of a model version, as it is stored, and the quality bound of a model. Pure."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.store.payloads.strict_model import Strict

BELOW_BOUND: Final = "quality_below_bound"
"""The code of a version that was rejected because of its quality report."""


class QualityReport(BaseModel):
    """How far a version is from its reference. The texts are those of ``models.quality.texts``."""

    # A later release may have written more.
    model_config = ConfigDict(extra="ignore", frozen=True)

    against: str = Field(description="the reference: a version, or `float32`, its own files in that number format")
    num_tokens: int = Field(description="predictions that were compared")
    kl: float = Field(description="mean Kullback-Leibler divergence from the reference, in nats")
    agreement: float = Field(description="share of the predictions whose most likely token is the reference's")
    perplexity: float = Field(description="the version's perplexity of the texts")
    reference_perplexity: float = Field(description="the reference's perplexity of the texts")
    took_s: float = Field(description="seconds of the measurement, with the load of the reference")

    @property
    def perplexity_ratio(self) -> float:
        """The perplexity, as a part of the reference's."""
        return self.perplexity / self.reference_perplexity


class QualityBound(Strict):
    """What the versions of a model must keep to become ready. A limit that is null is not checked."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"min_agreement": 0.97, "max_kl": 0.02, "max_perplexity_ratio": 1.03}]}
    )

    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="the least share of predictions whose most likely token is the reference's"
    )
    max_kl: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None, description="the greatest mean Kullback-Leibler divergence, in nats"
    )
    max_perplexity_ratio: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None, description="the greatest perplexity, as a part of the reference's"
    )

    @model_validator(mode="after")
    def _has_a_limit(self) -> "QualityBound":
        if not self.model_dump(exclude_none=True):
            raise ValueError("give min_agreement, max_kl or max_perplexity_ratio")
        return self


def outside(report: QualityReport, bound: QualityBound) -> str | None:
    """Return what of a report is outside the bound, in words with the figures; None if all is within it."""
    checks = (
        ("top-1 agreement", report.agreement, bound.min_agreement, "least"),
        ("KL", report.kl, bound.max_kl, "most"),
        ("perplexity ratio", report.perplexity_ratio, bound.max_perplexity_ratio, "most"),
    )
    found = [
        f"{name} {value:.4f} of at {side} {limit:g}"
        for name, value, limit, side in checks
        if limit is not None and not (value >= limit if side == "least" else value <= limit)
    ]
    return ", ".join(found) or None


def report_line(report: Mapping[str, Any]) -> str:
    """Return a report, as a JSON object, in one line."""
    ratio = report["perplexity"] / report["reference_perplexity"]
    return (
        f"{report['agreement']:.1%} of the next tokens of {report['against']}, KL {report['kl']:.4f}, "
        f"perplexity × {ratio:.3f}"
    )

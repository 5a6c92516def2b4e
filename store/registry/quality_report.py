"""The quality report of a model version, as it is stored, and the quality bound of a model. Pure."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.store.payloads.strict_model import Strict

BELOW_BOUND: Final = "quality_below_bound"
"""The code of a version that was rejected, or gets no alias, because of its quality report."""

NOT_MEASURED: Final = "quality_not_measured"
"""The code of a version on an inference server that gets no alias, because it has no quality report."""


class VersionFigures(BaseModel):
    """What was measured of one of the two versions of a report, one after the other on the same machine."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    dtype: str = Field(description="the number format in which it computed")
    perplexity: float | None = Field(default=None, description="the perplexity of the texts; null: not measured")
    load_s: float | None = Field(default=None, description="seconds to check the files and load the weights")
    memory_bytes: int | None = Field(
        default=None, description="by how much the worker's memory grew when it was loaded, without a GPU's"
    )
    tokens_per_s: float | None = Field(default=None, description="tokens per second of all continuations together")
    first_token_s: float | None = Field(
        default=None, description="seconds to the first token of a continuation that runs alone, the median"
    )


class QualityReport(BaseModel):
    """How far a version is from its reference, and what it costs. The texts are those of ``models.quality.texts``."""

    # A later release may have written more.
    model_config = ConfigDict(extra="ignore", frozen=True)

    against: str = Field(description="the reference: a version, or `float32`, its own files in that number format")
    num_tokens: int = Field(description="predictions that were compared")
    kl: float | None = Field(
        default=None, description="mean Kullback-Leibler divergence from the reference, in nats; null: not measured"
    )
    agreement: float | None = Field(
        default=None,
        description="share of the predictions whose most likely token is the reference's; null: not measured",
    )
    missing: str | None = Field(default=None, description="which figures were not measured, and why; null: none")
    same_answers: int = Field(description="greedy continuations that equal the reference's, token for token")
    num_answers: int = Field(description="greedy continuations that were compared")
    disk_bytes: int | None = Field(default=None, description="bytes of the weights on the disk")
    version: VersionFigures = Field(description="the version itself")
    reference: VersionFigures = Field(description="the reference")
    took_s: float = Field(description="seconds of the measurement, with the load of the reference")

    @property
    def perplexity_ratio(self) -> float | None:
        """The perplexity, as a part of the reference's; None if it was not measured."""
        own, its = self.version.perplexity, self.reference.perplexity
        return None if own is None or its is None else own / its


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


def outside(report: QualityReport, bound: QualityBound, *, shown: bool = False) -> str | None:
    """Return what of a report is outside the bound, in words with the figures; None if all is within it.

    ``shown``: figures that were not measured are not judged; else they are outside.
    """
    checks = (
        ("top-1 agreement", report.agreement, bound.min_agreement, "least"),
        ("KL", report.kl, bound.max_kl, "most"),
        ("perplexity ratio", report.perplexity_ratio, bound.max_perplexity_ratio, "most"),
    )
    found = [
        f"{name} not measured" if value is None else f"{name} {value:.4f} of at {side} {limit:g}"
        for name, value, limit, side in checks
        if limit is not None and not (shown and value is None)
        if value is None or not (value >= limit if side == "least" else value <= limit)
    ]
    return ", ".join(found) or None

"""The bound of a model names what of a report is outside it, with the figures; a limit itself is within."""

import pytest
from pydantic import ValidationError

from headrace.store.registry.quality_report import QualityBound, QualityReport, outside, report_line
from tests.refusals import Naming

REPORT = QualityReport(
    against="tiny@1",
    num_tokens=5000,
    kl=0.02,
    agreement=0.97,
    perplexity=20.6,
    reference_perplexity=20.0,
    took_s=60.0,
)


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({"min_agreement": 0.97, "max_kl": 0.02, "max_perplexity_ratio": 1.031}, None),
        ({"min_agreement": 0.971}, Naming("agreement 0.9700", "0.971")),
        ({"max_kl": 0.01}, Naming("KL 0.0200", "0.01")),
        (
            {"max_perplexity_ratio": 1.02, "max_kl": 0.01},
            Naming("KL 0.0200", "0.01, perplexity ratio 1.0300", "1.02"),
        ),
    ],
)
def test_what_is_outside_the_bound_is_named(limits: dict[str, float], found: object) -> None:
    assert outside(REPORT, QualityBound.model_validate(limits)) == found


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("min_agreement", (0, 1), (-0.1, 1.1)),
        ("max_kl", (0, 100), (-0.1, 100.1)),
        ("max_perplexity_ratio", (0.1, 1000), (0, 1000.1)),
    ],
)
def test_a_bound_has_limits_that_a_version_can_keep(name: str, good: tuple[float, ...], bad: tuple[float, ...]) -> None:
    for value in good:
        assert QualityBound.model_validate({name: value}).model_dump(exclude_none=True) == {name: value}
    for value in bad:
        with pytest.raises(ValidationError):
            QualityBound.model_validate({name: value})
    with pytest.raises(ValidationError, match="give min_agreement, max_kl or max_perplexity_ratio"):
        QualityBound()


def test_a_report_is_one_line() -> None:
    assert report_line(REPORT.model_dump(mode="json")) == Naming("97.0%", "tiny@1", "KL 0.0200", "1.030")

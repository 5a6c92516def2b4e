"""The bound of a model names what of a report is outside it, with the figures; a limit itself is within."""

import pytest

from store.registry.quality_report import QualityBound, QualityReport, VersionFigures, outside
from store.registry.quality_view import quality_svg, report_rows

REPORT = QualityReport(
    against="tiny@1",
    num_tokens=5000,
    kl=0.02,
    agreement=0.97,
    same_answers=5,
    num_answers=12,
    version=VersionFigures(dtype="int8", perplexity=20.6, tokens_per_s=300.0),
    reference=VersionFigures(dtype="float32", perplexity=20.0, tokens_per_s=200.0, first_token_s=0.01),
    took_s=60.0,
)


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({"min_agreement": 0.97, "max_kl": 0.02, "max_perplexity_ratio": 1.031}, None),
        ({"min_agreement": 0.971}, "top-1 agreement 0.9700 of at least 0.971"),
        ({"max_kl": 0.01}, "KL 0.0200 of at most 0.01"),
        (
            {"max_perplexity_ratio": 1.02, "max_kl": 0.01},
            "KL 0.0200 of at most 0.01, perplexity ratio 1.0300 of at most 1.02",
        ),
    ],
)
def test_what_is_outside_the_bound_is_named(limits: dict[str, float], found: str | None) -> None:
    assert outside(REPORT, QualityBound.model_validate(limits)) == found


def test_a_report_without_some_figures_is_shown_and_drawn() -> None:
    shown = REPORT.model_dump(mode="json")
    rows = {name: (mine, its) for name, mine, its in report_rows(shown)}
    assert rows["first token"] == ("", "10 ms")
    assert rows["same continuations"] == ("5 of 12", "")
    drawn = quality_svg("tiny", {"@2": shown})
    assert drawn.count("<rect") == 1 + 2 * 4 + 1, "two bars a figure, one where only the reference has it, none without"

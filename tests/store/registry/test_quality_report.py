"""The bound of a model names what of a report is outside it, with the figures; a limit itself is within."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from headrace.store.registry.quality_report import QualityBound, QualityReport, VersionFigures, outside
from headrace.store.registry.quality_view import quality_svg, report_line, report_rows
from tests.refusals import Naming

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


def test_a_report_without_some_figures_is_shown_and_drawn() -> None:
    shown = REPORT.model_dump(mode="json")
    rows = {name: (mine, its) for name, mine, its in report_rows(shown)}
    assert rows["first token"] == ("", "10 ms")
    assert rows["same continuations"] == ("5 of 12", "")
    drawn = quality_svg("tiny", {"@2": shown})
    assert drawn.count("<rect") == 1 + 2 * 4 + 1, "two bars a figure, one where only the reference has it, none without"


@pytest.mark.parametrize(("is_shown", "found"), [(False, Naming("agreement not", "KL not")), (True, None)])
def test_figures_that_were_not_measured_are_outside_unless_only_shown_ones_count(is_shown: bool, found: object) -> None:
    bound = QualityBound(min_agreement=0.9, max_kl=0.1, max_perplexity_ratio=1.04)
    unknown = REPORT.model_copy(update={"agreement": None, "kl": None})
    assert outside(unknown, bound, shown=is_shown) == found


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


WHOLE: dict[str, Any] = {
    "against": "float32",
    "num_tokens": 5000,
    "kl": 0.0125,
    "agreement": 0.975,
    "same_answers": 7,
    "num_answers": 12,
    "disk_bytes": 1_500_000_000,
    "missing": None,
    "version": {
        "dtype": "int8",
        "perplexity": 22.0,
        "load_s": 1.25,
        "memory_bytes": 400_000_000,
        "tokens_per_s": 300.0,
        "first_token_s": 0.02,
    },
    "reference": {
        "dtype": "float32",
        "perplexity": 20.0,
        "load_s": 2.5,
        "memory_bytes": 1_600_000_000,
        "tokens_per_s": 150.0,
        "first_token_s": 0.04,
    },
    "took_s": 60.0,
}


def test_all_figures_of_a_report_have_their_units() -> None:
    assert [figures for _, *figures in report_rows(WHOLE)] == [
        ["int8", "float32"],
        ["22.000", "20.000"],
        ["0.01250", "0"],
        ["0.9750", "1"],
        ["7 of 12", ""],
        ["1.2 s", "2.5 s"],
        ["400 MB", "1,600 MB"],
        ["300", "150"],
        ["20 ms", "40 ms"],
        ["1,500 MB", "1,500 MB"],
    ]
    assert report_rows(WHOLE | {"missing": "KL: no logprobs"})[-2] == ("not measured", "KL: no logprobs", "")
    assert report_line(WHOLE) == Naming("97.5%", "float32", "KL 0.0125", "1.100")
    for name in ("agreement", "kl"):
        assert report_line(WHOLE | {name: None}) == Naming("7 of 12", "float32")


def test_the_bars_of_all_figures_are_drawn_beside_the_reference() -> None:
    drawn = quality_svg("a<b&c", {"tiny@10": WHOLE, "tiny@2": WHOLE | {"against": "tiny@10"}})
    words = re.findall(r">([^<>]+)</text>", drawn)
    figures = [
        ["0.0000", "0.0125", "0.0125"],
        ["150", "300", "300"],
        ["0.0%", "2.5%", "2.5%"],
        ["40 ms", "20 ms", "20 ms"],
        ["1.000", "1.100", "1.100"],
        ["1,600 MB", "400 MB", "400 MB"],
    ]
    names = ["float32", "tiny@10 int8", "tiny@2 int8"]
    panels = [[word for pair in zip(names, texts, strict=True) for word in pair] for texts in figures]
    title, *rest = words
    assert (title, [rest[at + 1 : at + 7] for at in range(0, len(rest), 7)]) == ("a&lt;b&amp;c", panels)
    bars = re.findall(r'<rect x="(\d+)" y="(\d+)" width="([0-9.]+)" height="14" fill="([^"]+)"', drawn)
    grey, blue = "#8a949e", "#1b6ca8"
    assert bars[:6] == [
        ("140", "58", "0.0", grey),
        ("140", "80", "135.0", blue),
        ("140", "102", "135.0", blue),
        ("480", "58", "67.5", grey),
        ("480", "80", "135.0", blue),
        ("480", "102", "135.0", blue),
    ]
    assert [bar[:2] for bar in bars[6::6]] == [("140", "162"), ("140", "266")]
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg" width="680" height="346" viewBox="0 0 680 346" ')

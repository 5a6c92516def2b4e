"""The drawing of the evidence: well-formed, a line for each check, and nothing that a strict page would refuse."""

from typing import Any
from xml.etree import ElementTree

from store.rollouts.evidence_plot import evidence_svg

SVG = "{http://www.w3.org/2000/svg}"


def entry(at: int, percent: float, **log_e: float) -> dict[str, Any]:
    return {"at": at, "percent": percent, "log_e": log_e}


EVIDENCE = {
    "checks": [{"name": "errors", "needed": 3.0}, {"name": "token_time", "needed": 3.0}],
    "history": [entry(1000, 5, errors=0.0), entry(1600, 5, errors=1.5, token_time=-9.0), entry(2200, 25, errors=3.5)],
}


def test_each_check_is_a_line_and_more_evidence_is_higher() -> None:
    drawing = ElementTree.fromstring(evidence_svg("tiny <1 to 2>", EVIDENCE))
    errors, _ = drawing.findall(f"{SVG}polyline")
    places = [tuple(map(float, place.split(","))) for place in errors.attrib["points"].split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert places[0][1] > places[1][1] > places[2][1]
    (limit,) = drawing.findall(f"{SVG}line[@stroke-dasharray]")
    assert places[1][1] > float(limit.attrib["y1"]) > places[2][1]
    words = [one.text for one in drawing.findall(f"{SVG}text")]
    assert {"tiny <1 to 2>", "errors 3.5", "token time -9.0", "5 %", "25 %"} <= set(words)
    assert "style" not in {name for one in drawing.iter() for name in one.attrib}


def test_a_rollout_without_a_look_has_a_drawing_without_lines() -> None:
    drawing = ElementTree.fromstring(evidence_svg("tiny", {}))
    assert drawing.findall(f"{SVG}polyline") == []

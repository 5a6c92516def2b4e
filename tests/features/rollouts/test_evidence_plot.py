"""The drawing of the evidence: well-formed, a line for each check, and nothing that a strict page would refuse."""

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

from headrace.features.rollouts.bounds import Bounds
from headrace.features.rollouts.evidence import Evidence
from headrace.features.rollouts.evidence_plot import evidence_svg
from headrace.features.rollouts.history import MAX_ENTRIES, with_verdict
from headrace.features.rollouts.judge import judge
from tests.features.rollouts.test_transitions import BEGAN, ROLLOUT

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


def test_the_lines_stand_where_their_seconds_and_logarithms_are() -> None:
    drawing = ElementTree.fromstring(evidence_svg("tiny", EVIDENCE))
    lines = [(one.attrib["points"], one.attrib["stroke"]) for one in drawing.findall(f"{SVG}polyline")]
    # 20 minutes are 494 places from 56 on; the logarithms go from -3 at the bottom, 296, to 4 at the top, 34.
    assert lines == [
        ("56.0,183.7 303.0,127.6 550.0,52.7", "#1b6ca8"),
        ("303.0,296.0", "#d1495b"),
    ]
    (limit,) = drawing.findall(f"{SVG}line[@stroke-dasharray]")
    assert limit.attrib["y1"] == "71.4"
    words = [(one.attrib["x"], one.attrib["y"], one.text) for one in drawing.findall(f"{SVG}text")]
    assert words[0] == ("56.0", "16.0", "tiny")
    assert [text for _, _, text in words[1:9]] == ["-3", "-2", "-1", "0", "1", "2", "3", "4"]
    assert words[9:15] == [
        ("546.0", "67.4", "bad"),
        ("56.0", "312.0", "0"),
        ("179.5", "312.0", "5"),
        ("303.0", "312.0", "10"),
        ("426.5", "312.0", "15"),
        ("550.0", "312.0", "20"),
    ]
    assert words[16:] == [
        ("59.0", "30.0", "5 %"),
        ("553.0", "30.0", "25 %"),
        ("583.0", "45.0", "errors 3.5"),
        ("583.0", "65.0", "token time -9.0"),
    ]


def test_a_full_history_gets_coarser_and_keeps_its_length() -> None:
    verdict = judge(Evidence(), Bounds())
    evidence = Evidence(num_candidate=3, num_stable=4)
    first = with_verdict(ROLLOUT, evidence, verdict, BEGAN)
    at = int(BEGAN.timestamp())
    log_e = {check.name: 0.0 for check in verdict.checks}
    assert first["history"] == [{"at": at, "percent": 10, "log_e": log_e, "num_candidate": 3, "num_stable": 4}]
    assert {name: first[name] for name in ("at", "is_bad", "summary", "checks", "counts")} == {
        "at": at,
        "is_bad": False,
        "summary": {"num_candidate": 3, "num_stable": 4},
        "checks": [check.as_json() for check in verdict.checks],
        "counts": evidence.as_json(),
    }
    for held, kept in ((MAX_ENTRIES - 1, MAX_ENTRIES - 1), (MAX_ENTRIES, MAX_ENTRIES // 2)):
        history = [{"at": n} for n in range(held)]
        full = with_verdict(replace(ROLLOUT, evidence={"history": history}), evidence, verdict, BEGAN)["history"]
        assert (len(full), full[1]["at"], full[-1]["at"]) == (kept + 1, held // kept, at)
    assert MAX_ENTRIES == 240

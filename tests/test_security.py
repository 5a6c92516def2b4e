"""SECURITY.md names every risk of both lists, and for each control tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()
RISKS = [f"API{number}" for number in range(1, 11)] + [f"LLM{number:02}" for number in range(1, 11)]


def rows() -> dict[str, tuple[str, str]]:
    """Control and proof of each risk."""
    found = re.findall(r"^\| ((?:API|LLM)\d+) [^|]*\| ([^|]*) \| ([^|]*) \|$", TEXT, re.MULTILINE)
    assert len(found) == len({risk for risk, _, _ in found})
    return {risk: (control, proof) for risk, control, proof in found}


@pytest.mark.whole
@pytest.mark.parametrize("risk", RISKS)
def test_each_risk_has_a_control_with_tests_that_exist(risk: str) -> None:
    control, proof = rows()[risk]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proof)
    assert proof == ", ".join(f"`{path}::{test}`" for path, test in named) or control.startswith("Not a control: ")
    for path, test in named:
        assert re.search(rf"^ *(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {test}"


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (ROOT / target).is_file(), target

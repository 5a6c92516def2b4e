"""The recognisers against the texts that ship: see ``policy/data/evaluation.txt``."""

import pytest

from policy.evaluation import STRUCTURED, Case, Finder, evaluate, read_cases, second, shipped


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([case for case in shipped() if not case.is_held_out], id="tuned"),
        pytest.param([case for case in shipped() if case.is_held_out], id="held out"),
        pytest.param(second(), id="second set"),
    ],
)
def test_precision_and_recall_are_what_is_promised(cases: list[Case]) -> None:
    scores = evaluate(cases)
    poor = {s.kind: (s.precision, s.recall) for s in scores if min(s.precision, s.recall) < 0.95}
    assert poor == {}
    assert all(score.num_marked >= 3 for score in scores)


def test_what_is_missed_and_what_is_wrong_are_counted() -> None:
    cases = list(read_cases("## x\nno {{email|here}} but a@example.com\n+ {{email|b@example.com}}\n{{card|x}}\n"))
    assert [case.is_held_out for case in cases] == [False, False, True]
    email = evaluate(cases)[STRUCTURED.index("email")]  # type: ignore[arg-type]
    assert (email.num_marked, email.num_right, email.num_wrong) == (2, 1, 1)
    assert (email.precision, email.recall) == (0.5, 0.5)


@pytest.fixture(scope="module")
def finder() -> Finder:
    return Finder()


@pytest.mark.parametrize("case", [case for case in shipped() if case.marked][::9], ids=lambda case: case.text[:30])
def test_a_thing_is_found_wherever_it_stands(finder: Finder, case: Case) -> None:
    """Behind a long text, and once for each time that it is there."""
    before = "Nothing to see here. " * 50 + "\n\n"
    text = before + case.text + "\n\n" + before + case.text
    once = {(start + len(before), end + len(before), kind) for start, end, kind in case.marked}
    shift = len(before) + len(case.text) + 2
    assert finder.find(text) == once | {(start + shift, end + shift, kind) for start, end, kind in once}


def test_long_runs_of_what_nearly_matches_end() -> None:
    """Linear time: with a matcher that goes back, these would not end."""
    finder = Finder()
    for unit in ("a", "1", "1 ", "a@", "1.", ":", "a.", "-", "DE44 ", "(1", "eyJ", "password=", "-----BEGIN "):
        run = unit * 20_000 + "\n\n"
        assert (len(run), len(run) + 15, "email") in finder.find(run + "ada@example.org"), unit

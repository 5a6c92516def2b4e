"""The recognisers against the texts of the folder ``texts``."""

import pytest

from headrace.policy.recognisers.recogniser import STRUCTURED
from tests.policy.evaluation import Case, Finder, evaluate, first, read_cases, second

Counts = dict[str, tuple[int, int, int]]

# Of each kind: how many are marked, how many are found, how many findings are wrong.
FIRST: Counts = {
    "email": (76, 76, 0),
    "phone": (102, 102, 0),
    "card": (43, 43, 0),
    "iban": (31, 31, 0),
    "us_ssn": (22, 22, 0),
    "national_id": (54, 54, 0),
    "ip_address": (49, 49, 0),
    "api_key": (36, 33, 0),
    "jwt": (10, 10, 0),
    "private_key": (6, 6, 0),
}
SECOND: Counts = {
    "email": (216, 215, 1),
    "phone": (377, 376, 0),
    "card": (169, 169, 0),
    "iban": (193, 193, 0),
    "us_ssn": (57, 57, 0),
    "national_id": (220, 220, 0),
    "ip_address": (138, 138, 0),
    "api_key": (233, 232, 10),
    "jwt": (43, 43, 0),
    "private_key": (50, 50, 0),
}


@pytest.mark.parametrize(
    ("cases", "counts"),
    [
        pytest.param(first(), FIRST, id="first"),
        pytest.param(second(), SECOND, id="second", marks=pytest.mark.full),
    ],
)
def test_each_text_is_read_as_it_was_before(cases: list[Case], counts: Counts) -> None:
    """A change that finds more puts its higher counts in here; one that finds less is seen."""
    found = {score.kind: (score.num_marked, score.num_right, score.num_wrong) for score in evaluate(cases)}
    assert found == counts


def test_what_is_missed_and_what_is_wrong_are_counted() -> None:
    cases = list(read_cases("## x\nno {{email|here}} but a@example.com\n+ {{email|b@example.com}}\n{{card|x}}\n"))
    email = evaluate(cases)[STRUCTURED.index("email")]  # type: ignore[arg-type]
    assert (email.num_marked, email.num_right, email.num_wrong) == (2, 1, 1)
    assert (email.precision, email.recall) == (0.5, 0.5)


@pytest.fixture(scope="module")
def finder() -> Finder:
    return Finder()


@pytest.mark.parametrize("case", [case for case in first() if case.marked][::9], ids=lambda case: case.text[:30])
def test_a_thing_is_found_wherever_it_stands(finder: Finder, case: Case) -> None:
    """Behind a long text, and once for each time that it is there."""
    before = "Nothing to see here. " * 50 + "\n\n"
    text = before + case.text + "\n\n" + before + case.text
    once = {(start + len(before), end + len(before), kind) for start, end, kind in case.marked}
    shift = len(before) + len(case.text) + 2
    assert finder.find(text) == once | {(start + shift, end + shift, kind) for start, end, kind in once}


@pytest.mark.parametrize(
    "units",
    [
        ("a", "1 ", "a@", "password="),
        pytest.param(("1", "1.", ":", "a.", "-", "DE44 ", "(1", "eyJ", "-----BEGIN "), marks=pytest.mark.full),
    ],
)
def test_long_runs_of_what_nearly_matches_end(finder: Finder, units: tuple[str, ...]) -> None:
    """Linear time: with a matcher that goes back, these would not end."""
    for unit in units:
        run = unit * 20_000 + "\n\n"
        assert (len(run), len(run) + 15, "email") in finder.find(run + "ada@example.org"), unit

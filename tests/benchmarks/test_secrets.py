"""The recall of secrets on texts that are composed, and what they leave alone."""

from pathlib import Path

import pytest

from benchmarks.secrets import package_cases
from benchmarks.secrets.by_kind import score
from benchmarks.secrets.compose import PARTS, compose
from benchmarks.secrets.disputes import dispute
from benchmarks.secrets.negatives import negatives
from benchmarks.secrets.package_mining import places
from headrace.policy.evaluation import Case, Finder

SECRETS = {"api_key", "jwt"}


def _places(found: frozenset[tuple[int, int, str]]) -> set[tuple[int, int]]:
    return {(start, end) for start, end, _ in found}


@pytest.mark.parametrize("part", PARTS[:2])
def test_secrets_of_unknown_vendors_are_found_under_labels_of_many_languages(part: str) -> None:
    finder = Finder()
    cases = compose(4, part, 150)
    missed = [case.text for case in cases if not _places(case.marked) <= _places(finder.find(case.text))]
    assert len({case.text for case in cases}) == len(cases)
    assert len(missed) <= 9, missed


@pytest.mark.parametrize("part", PARTS[:2])
def test_digests_ids_addresses_and_code_are_left_alone(part: str) -> None:
    finder = Finder()
    texts = [case.text for case in negatives(4, part, times=1)]
    found = [text for text in texts if SECRETS & {kind for *_, kind in finder.find(text)}]
    assert len(found) <= 1, found


def test_places_in_packages_are_found_and_filled(tmp_path: Path) -> None:
    for name, line in (
        ("one", "then start your server with run --password tiger x"),
        ("two", "then call this server with curl -u kim:tiger https://h"),
        ("six", "open this console with 密码：`tiger`"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "page.md").write_text(f"passwort\n{line}\n")
    halves = [places([tmp_path], part) for part in (0, 1)]
    of_sort = {sort: each * 3 for of_half in halves for sort, each in of_half.items()}
    assert {sort: {each.package for each in found} for sort, found in of_sort.items()} == {
        "option": {"one"},
        "basic": {"two"},
        "local": {"six"},
        "password": {"one"},
    }
    cases, finder = package_cases.compose(1, of_sort, 0, 20), Finder()
    for sort in ("option", "basic", "local"):
        assert len(cases[sort]) == 20
        assert sum(score(finder, case)[0] for case in cases[sort]) >= 15


@pytest.mark.parametrize(
    ("before", "after", "is_disputed"),
    [
        ("cut -d: -f1 < /etc/passwd | ", " | xargs", True),
        ("sa_password: {{ .Values.sa_password | ", " | quote }}", True),
        ("    enable\\-cache            passwd          ", "", True),
        ("User Id=&lt;User&gt;;Password=", ";Password&gt;;", True),
        ("mysql://ann:", "@b$r@x.example", True),
        ("| Password | ", " | of the user |", False),
        ("backup --passwd ", " --force", False),
        ("<string>Server=x;Pwd=", "&quot;", False),
    ],
)
def test_a_place_without_a_secret_is_told_by_the_text_around_it(before: str, after: str, is_disputed: bool) -> None:
    marked = frozenset([(len(before), len(before) + 8, "api_key")])
    case = Case("separator", f"{before}river123{after}", marked, is_held_out=True)
    assert (dispute(case) is not None) == is_disputed

"""The recall of secrets on texts that are composed, and what they leave alone."""

import pytest

from benchmarks.secrets.compose import PARTS, compose
from benchmarks.secrets.negatives import negatives
from policy.evaluation import Finder

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

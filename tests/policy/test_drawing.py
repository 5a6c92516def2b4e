"""The recognisers on texts that are drawn: see ``drawing``."""

import pytest

from tests.policy.drawing import KINDS, LINES, ORDINARY, cases, scores


@pytest.mark.parametrize("part", ["tuned", "held"])
def test_recall_and_precision_on_texts_that_are_drawn(part: str) -> None:
    found = scores(cases(2, part))
    assert set(found) == set(KINDS)
    poor = {kind: score.recall for kind, score in found.items() if score.recall < 0.96}
    assert poor == {}
    assert sum(score.num_wrong for score in found.values()) <= 2
    assert all(score.num_marked >= 30 for score in found.values())


@pytest.mark.parametrize("part", LINES)
def test_recall_and_precision_on_drawn_lines_of_all_kinds(part: str) -> None:
    found = scores(cases(2, part))
    poor = {kind: score.recall for kind, score in found.items() if score.recall < 0.96}
    assert poor == {}
    assert sum(score.num_wrong for score in found.values()) <= 3


def test_nothing_is_found_in_ordinary_texts() -> None:
    assert scores(cases(2, ORDINARY)) == {}

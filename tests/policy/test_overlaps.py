"""Matches that overlap: which of them belong together, and which characters each of them keeps."""

import pytest

from policy.documents import Action, Rule
from policy.guards import Match, blocking_rule, group_overlaps, resolve_overlaps
from policy.recognisers.recogniser import Kind, Recogniser

Given = tuple[str, int, int, int]
"""Name, priority, start and end."""

ACTIONS = [("first", Action.MASK), ("second", Action.BLOCK), ("third", Action.BLOCK)]


def matches(*given: Given) -> list[Match]:
    return [
        Match(start, end, Recogniser(name, "email", priority, "", lambda _text, _before: []), None)
        for name, priority, start, end in given
    ]


def shown(found: list[Match]) -> list[tuple[str, int, int]]:
    return [(one.recogniser.name, one.start, one.end) for one in found]


def test_matches_that_overlap_are_one_group_and_neighbours_are_not() -> None:
    found = matches(("e", 1, 9, 11), ("a", 1, 0, 8), ("b", 1, 1, 3), ("c", 1, 7, 9), ("d", 1, 12, 13))
    assert [[one.recogniser.name for one in group] for group in group_overlaps(found)] == [
        ["a", "b", "c"],
        ["e"],
        ["d"],
    ]
    assert list(group_overlaps([])) == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([("a", 1, 0, 3)], [("a", 0, 3)]),
        # The higher priority has the shared characters, the other one keeps what is left on both sides.
        ([("low", 1, 0, 10), ("high", 2, 3, 5)], [("low", 0, 3), ("high", 3, 5), ("low", 5, 10)]),
        # A match behind its end takes nothing away, and adds nothing.
        (
            [("a", 3, 5, 8), ("b", 3, 20, 25), ("c", 2, 7, 21), ("d", 1, 0, 10)],
            [("d", 0, 5), ("a", 5, 8), ("c", 8, 20), ("b", 20, 25)],
        ),
        ([("a", 3, 2, 4), ("b", 3, 6, 8), ("d", 1, 0, 7)], [("d", 0, 2), ("a", 2, 4), ("d", 4, 6), ("b", 6, 8)]),
        # Of the same priority the longer one comes first, then the one further to the left.
        ([("short", 1, 0, 4), ("long", 1, 2, 8)], [("short", 0, 2), ("long", 2, 8)]),
        ([("right", 1, 2, 6), ("left", 1, 0, 4)], [("left", 0, 4), ("right", 4, 6)]),
        ([("a", 2, 0, 6), ("b", 1, 2, 6)], [("a", 0, 6)]),
    ],
)
def test_each_character_has_one_match(given: list[Given], kept: list[tuple[str, int, int]]) -> None:
    assert shown(resolve_overlaps(matches(*given))) == kept


def test_the_first_rule_that_blocks_is_named() -> None:
    rules = [Rule(id=name, action=action, kinds=(Kind.EMAIL,)) for name, action in ACTIONS]
    (one,) = matches(("a", 1, 0, 1))
    group = [Match(one.start, one.end, one.recogniser, rule) for rule in (None, *rules)]
    found = blocking_rule(group)
    assert found is not None
    assert found.id == "second"
    assert blocking_rule(group[:2]) is None

"""Prompt lookup against a slow search through the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from models.engine.speculation.prompt_lookup import PromptLookup

TEXTS = st.lists(st.integers(0, 3), max_size=60)


def num_matching(tokens: list[int], place: int) -> int:
    """How many tokens before ``place`` are those at the end, eight at most."""
    return next((n for n in range(8) if n >= place or tokens[place - n - 1] != tokens[-n - 1]), 8)


def slow_draft(tokens: list[int], most: int) -> list[int]:
    places = [place for place in range(2, len(tokens)) if tokens[place - 2 : place] == tokens[-2:]][-4:]
    if not places:
        return []
    place = max(places, key=lambda each: (num_matching(tokens, each), each))
    text = list(tokens)
    for at in range(place, place + most):
        text.append(text[at])
    return text[len(tokens) :]


@given(tokens=TEXTS, most=st.integers(0, 12), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_it_finds_what_a_search_finds_however_the_text_came(tokens: list[int], most: int, cuts: list[int]) -> None:
    lookup = PromptLookup()
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        lookup.extend(tokens[begin:end])
    assert len(lookup) == len(tokens)
    assert lookup.draft(most) == slow_draft(tokens, most)


def test_a_copy_is_continued_and_a_new_word_is_not() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 4, 5, 6, 9, 2, 3])
    assert lookup.draft(3) == [4, 5, 6]
    lookup.extend([7])
    assert lookup.draft(3) == []


def test_the_longer_match_goes_before_the_later_one() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 50, 8, 2, 3, 60, 1, 2, 3])
    assert lookup.draft(1) == [50]


def test_a_loop_goes_round() -> None:
    lookup = PromptLookup()
    lookup.extend([5, 1, 2, 1, 2])
    assert lookup.draft(5) == [1, 2, 1, 2, 1]

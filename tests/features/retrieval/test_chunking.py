"""Passages: no longer than asked for, over the whole text, with the places that they say."""

import random

import pytest

from headrace.features.retrieval.chunking import page_at, spans, token_starts
from headrace.prompts.tokenizer import ByteTokenizer

TEXT = "Water runs downhill. The mill turns, and grinds corn!\n\nBread is baked of it: é and ü count twice.\n" * 12


@pytest.mark.parametrize(("size", "overlap"), [(40, 0), (40, 10), (100, 25), (100, 50), (7, 3), (100_000, 0)])
def test_passages_cover_the_text_and_keep_their_bounds(size: int, overlap: int) -> None:
    tokenizer = ByteTokenizer()
    found = list(spans(TEXT, token_starts(tokenizer, TEXT), size, overlap))
    covered = 0
    for one in found:
        text = TEXT[one.start : one.end]
        assert text.strip()
        assert len(tokenizer.encode(text, add_special=True)) <= size
        assert not TEXT[covered : one.start].strip(), "text was left out"
        assert len(TEXT[one.start : covered].encode()) <= overlap
        assert one.end > covered
        covered = one.end
    assert covered == len(TEXT.rstrip())
    if 40 <= size < 1000:
        assert all(TEXT[one.end - 1] in ".!:\n,;" or TEXT[one.end].isspace() for one in found[:-1]), "a word was cut"


def test_a_text_without_spaces_is_cut_anyway() -> None:
    text = "x" * 1000
    found = list(spans(text, token_starts(ByteTokenizer(), text), 100, 20))
    assert [(one.start, one.end) for one in found][:2] == [(0, 100), (100, 200)]
    assert found[-1].end == 1000


def test_a_long_text_has_the_tokens_of_its_pieces() -> None:
    text = " ".join(random.Random(4).choices(["mill", "water", "é"], k=60_000))
    starts = token_starts(ByteTokenizer(), text)
    assert len(starts) == len(text.encode())
    assert starts == sorted(starts)


def test_pages_are_counted_from_one() -> None:
    assert [page_at((0, 10, 10, 25), at) for at in (0, 9, 10, 24, 25, 99)] == [1, 1, 3, 3, 4, 4]
    assert page_at((), 5) is None
    assert page_at((5, 10), 4) is None


@pytest.mark.parametrize(
    ("text", "size", "overlap", "passages"),
    [
        # The end of a paragraph, though a sentence ends behind it; of a sentence, though a word does; of a word.
        ("aa bb. cc\n\ndd. ee ff gg", 18, 0, ["aa bb. cc", "dd. ee ff gg"]),
        ("aa bb cc dd! ee ff gg hh", 18, 0, ["aa bb cc dd!", "ee ff gg hh"]),
        ("aa bb cc dd ee ff", 9, 0, ["aa bb cc", "dd ee ff"]),
        ("aa bb cc\ndd ee ff gg hh", 15, 0, ["aa bb cc", "dd ee ff gg hh"]),
        # An end in the first half does not count.
        ("aa. bbbb cccc dddd", 15, 0, ["aa. bbbb cccc", "dddd"]),
        # The next one begins at a word, at most so many tokens before.
        ("aa bb cc dd ee ff", 9, 4, ["aa bb cc", "cc dd", "dd ee ff"]),
        ("aaaa bbbb cccc", 10, 3, ["aaaa bbbb", "cccc"]),
        ("  aa  ", 9, 3, ["aa"]),
        ("   ", 9, 3, []),
    ],
)
def test_passages_end_where_a_thought_ends(text: str, size: int, overlap: int, passages: list[str]) -> None:
    found = spans(text, token_starts(ByteTokenizer(), text), size, overlap)
    assert [text[one.start : one.end].strip() for one in found] == passages

"""Tokens put together to words and entities, with scores by hand."""

from collections.abc import Sequence

import pytest

from headrace.features.encoders.token_classify.entities import entities_of
from headrace.features.encoders.token_classify.task import Aggregation
from headrace.features.encoders.token_pieces import BytePieces
from headrace.prompts.encoded_texts import EncodedTexts

LABELS = ("O", "B-PER", "I-PER")
OUT, BEGIN, INSIDE = [0.75, 0.125, 0.125], [0.25, 0.5, 0.25], [0.0, 0.25, 0.75]


def found(
    text: str, scores: Sequence[Sequence[float]], how: Aggregation, labels: Sequence[str] = LABELS
) -> list[tuple[object, ...]]:
    """The entities of a text of one byte a token, between two special tokens that have scores too."""
    num = len(text)
    encoded = EncodedTexts(
        ids=(256, *text.encode(), 256),
        type_ids=(0,) * (num + 2),
        text_of=(None, *(0,) * num, None),
        offsets=((0, 0), *((at, at + 1) for at in range(num)), (0, 0)),
    )
    flat = [score for row in ([1.0, 0.0, 0.0], *scores, [1.0, 0.0, 0.0]) for score in row]
    entities = entities_of(text, encoded, flat, labels, BytePieces(), how)
    return [(one.label, one.score, one.start, one.end, one.word, one.index) for one in entities]


def test_without_aggregation_each_token_has_its_place_in_the_input() -> None:
    assert found("abc", [OUT, BEGIN, INSIDE], Aggregation.NONE) == [
        ("O", 0.75, 0, 1, "a", 1),
        ("B-PER", 0.5, 1, 2, "b", 2),
        ("I-PER", 0.75, 2, 3, "c", 3),
    ]


def test_neighbours_of_one_label_are_one_and_a_beginning_begins_another() -> None:
    assert found("abcde", [INSIDE, BEGIN, INSIDE, OUT, INSIDE], Aggregation.SIMPLE) == [
        ("PER", 0.75, 0, 1, "a", None),
        ("PER", 0.625, 1, 3, "bc", None),
        ("O", 0.75, 3, 4, "d", None),
        ("PER", 0.75, 4, 5, "e", None),
    ]
    others = ("O", "I-AX", "I-BX")
    assert [one[0] for one in found("ab", [BEGIN, INSIDE], Aggregation.SIMPLE, others)] == ["AX", "BX"]


@pytest.mark.parametrize(
    ("how", "before"),
    [
        (Aggregation.FIRST, [("PER", 0.5, 0, 2, "ab", None), ("O", 0.75, 2, 3, " ", None)]),
        (Aggregation.MAX, [("O", 0.75, 0, 3, "ab ", None)]),
        # The scores of O: 0.5 for the word, 0.75 for the space behind it.
        (Aggregation.AVERAGE, [("O", 0.625, 0, 3, "ab ", None)]),
    ],
)
def test_the_tokens_of_a_word_have_one_label(how: Aggregation, before: list[tuple[object, ...]]) -> None:
    assert found("ab c", [BEGIN, OUT, OUT, INSIDE], how) == [*before, ("PER", 0.75, 3, 4, "c", None)]

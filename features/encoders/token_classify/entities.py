"""Entities in a text: the scores of its tokens put together, equal to transformers' token classification pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from headrace.features.encoders.token_classify.task import Aggregation, Entity
from headrace.features.encoders.token_pieces import TokenPieces
from headrace.prompts.encoded_texts import EncodedTexts


@dataclass(frozen=True, slots=True)
class _Scored:
    """A token, or a word of tokens, with its scores or its chosen label. ``start`` and ``end`` are characters."""

    word: str
    scores: Sequence[float]
    start: int
    end: int
    index: int
    is_subword: bool = False
    label: str = ""
    score: float = 0.0


def entities_of(
    text: str,
    encoded: EncodedTexts,
    scores: Sequence[float],
    labels: Sequence[str],
    pieces: TokenPieces,
    how: Aggregation,
) -> tuple[Entity, ...]:
    """Return the entities of a text in order, also those of labels such as ``O``.

    ``scores`` has one for each label of the first token, then of the next.
    """
    width = len(labels)
    tokens = [
        _token(text, encoded, index, scores[index * width : (index + 1) * width], pieces)
        for index, number in enumerate(encoded.text_of)
        if number is not None
    ]
    if how is Aggregation.NONE:
        return tuple(_entity(_labelled(token, labels)) for token in tokens)
    if how is Aggregation.SIMPLE:
        chosen = [_labelled(token, labels) for token in tokens]
    else:
        chosen = [_word(word, labels, pieces, how) for word in _words(tokens)]
    return tuple(_group(group, pieces) for group in _groups(chosen))


def _token(text: str, encoded: EncodedTexts, index: int, scores: Sequence[float], pieces: TokenPieces) -> _Scored:
    token_id = encoded.ids[index]
    start, end = encoded.offsets[index]
    piece, shown = pieces.text(token_id), text[start:end]
    if token_id == pieces.unknown_id:
        return _Scored(shown, scores, start, end, index)
    if pieces.marks_subwords:
        is_subword = len(piece) != len(shown)
    else:
        is_subword = start > 0 and " " not in text[start - 1 : start + 1]
    return _Scored(piece, scores, start, end, index, is_subword)


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def _labelled(token: _Scored, labels: Sequence[str]) -> _Scored:
    best = _best(token.scores)
    return _Scored(
        token.word,
        token.scores,
        token.start,
        token.end,
        token.index,
        label=labels[best],
        score=token.scores[best],
    )


def _words(tokens: Sequence[_Scored]) -> list[list[_Scored]]:
    """Return the tokens of each word."""
    words: list[list[_Scored]] = []
    for token in tokens:
        if words and token.is_subword:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word(tokens: Sequence[_Scored], labels: Sequence[str], pieces: TokenPieces, how: Aggregation) -> _Scored:
    """Return a word with one label."""
    if how is Aggregation.FIRST:
        scores = tokens[0].scores
    elif how is Aggregation.MAX:
        scores = max(tokens, key=lambda token: max(token.scores)).scores
    else:
        scores = [fsum(column) / len(tokens) for column in zip(*(token.scores for token in tokens), strict=True)]
    word = pieces.join([token.word for token in tokens])
    return _labelled(_Scored(word, scores, tokens[0].start, tokens[-1].end, tokens[0].index), labels)


def _tag(label: str) -> tuple[bool, str]:
    """Return whether the label begins an entity, and its name without ``B-`` or ``I-``."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _groups(tokens: Sequence[_Scored]) -> list[list[_Scored]]:
    """Return the neighbours of one label together."""
    groups: list[list[_Scored]] = []
    for token in tokens:
        begins, name = _tag(token.label)
        if groups and not begins and name == _tag(groups[-1][-1].label)[1]:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


def _group(tokens: Sequence[_Scored], pieces: TokenPieces) -> Entity:
    return Entity(
        label=tokens[0].label.split("-", 1)[-1],
        score=fsum(token.score for token in tokens) / len(tokens),
        start=tokens[0].start,
        end=tokens[-1].end,
        word=pieces.join([token.word for token in tokens]),
    )


def _entity(token: _Scored) -> Entity:
    return Entity(
        label=token.label, score=token.score, start=token.start, end=token.end, word=token.word, index=token.index
    )

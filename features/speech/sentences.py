"""Cuts a text into what a voice says at once: sentences, and parts of long ones. The same text gives the same pieces.

Each piece is a delta of the stream and a step of the engine, so its length is bounded.
"""

import re
from collections.abc import Iterator

MOST_COST = 200
"""Of a piece: about fifteen seconds of sound."""

COST_S = 0.08
"""How long a cost of 1 is said at speed 1, by Kokoro."""

_SENTENCE = re.compile(r"[^。．！？!?\n]*(?:[。．！？!?\n]+[」』）”\"')\]]*|$)|.+?", re.DOTALL)
_STOP = re.compile(r"(?<=[.…])\s+")
_COMMA = re.compile(r"(?<=[、，,;；:：])")


def pieces_of(text: str) -> list[str]:
    """Return the pieces in order, without white space around them. Those without a letter or digit are left out."""
    found = [piece.strip() for sentence in _sentences(text) for piece in _bounded(sentence)]
    return [piece for piece in found if any(char.isalnum() for char in piece)]


def seconds_of(text: str) -> float:
    """Return about how long a text is said at speed 1, by its characters alone."""
    return COST_S * _cost(text)


def _sentences(text: str) -> Iterator[str]:
    for line in _SENTENCE.findall(text):
        yield from _STOP.split(line)


def _bounded(sentence: str) -> Iterator[str]:
    """Yield a sentence in pieces that are short enough, cut at a comma if there is one, else at a space."""
    piece = ""
    for part in (word for clause in _COMMA.split(sentence) for word in _clause(clause)):
        if piece and _cost(piece) + _cost(part) > MOST_COST:
            yield piece
            piece = ""
        piece += part
    if piece:
        yield piece


def _clause(clause: str) -> Iterator[str]:
    if _cost(clause) <= MOST_COST:
        yield clause
        return
    for word in re.findall(r"\S+\s*|\s+", clause):
        for at in range(0, len(word), MOST_COST // 2):
            yield word[at : at + MOST_COST // 2]


def _cost(text: str) -> int:
    """Return how long a text takes to say: a letter is 1, a digit and a sign of Chinese or Japanese 2."""
    return sum(2 if char >= "\u2e80" or char.isdigit() else 1 for char in text)

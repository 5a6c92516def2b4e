"""Cuts a text into passages of at most so many tokens of the embedding model, each with its place in the text.

    tokens of the text  ├──────────── size ────────────┤
                                    ├─overlap─┤
                                    ├──────────── size ────────────┤

A passage ends at the last end of a paragraph in its second half, else of a sentence, else of a word. It begins at a
word, at most ``overlap`` tokens before the end of the one before.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headrace.prompts.tokenizer import Tokenizer

_PIECE_CHARS = 100_000
"""A long text is encoded in pieces that end at a space, so that no list of tokens is longer than it must be."""

# Ends of paragraphs, of sentences, and of words.
_ENDS = (re.compile(r"\n\s*\n\s*"), re.compile(r"[.!?。！？]['\")\]]*\s+|\n"), re.compile(r"\s+"))
_SPACE = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Span:
    """A passage: its first character, and the one behind its last."""

    start: int
    end: int


def token_starts(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return where each token of a text begins, in characters, without special tokens."""
    found: list[int] = []
    for begin, end in _pieces(text):
        encoded = tokenizer.encode_texts(text[begin:end])
        places = zip(encoded.text_of, encoded.offsets, strict=True)
        found += [begin + offset[0] for of, offset in places if of is not None]
    return found


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    begin = 0
    while begin < len(text):
        end = min(len(text), begin + _PIECE_CHARS)
        if end < len(text) and (space := max(text.rfind(" ", begin, end), text.rfind("\n", begin, end))) > begin:
            end = space
        yield begin, end
        begin = end


def spans(text: str, starts: Sequence[int], size: int, overlap: int) -> Iterator[Span]:
    """Yield the passages of a text whose tokens begin at ``starts``. ``overlap`` is less than ``size``."""
    first = 0
    while first < len(starts):
        last = first + size
        end = len(text) if last >= len(starts) else _end(text, starts[first], starts[last])
        stripped = text[starts[first] : end].rstrip()
        if stripped:
            yield Span(starts[first], starts[first] + len(stripped))
        if end >= len(text):
            return
        next_token = bisect_left(starts, end)
        first = max(first + 1, _first_of_next(text, starts, next_token, overlap))


def _end(text: str, begin: int, limit: int) -> int:
    """Return where a passage ends that may reach up to ``limit``."""
    half = begin + (limit - begin) // 2
    for ends in _ENDS:
        found = [match.end() for match in ends.finditer(text, half, limit) if match.end() <= limit]
        if found:
            return found[-1]
    return limit


def _first_of_next(text: str, starts: Sequence[int], next_token: int, overlap: int) -> int:
    """Return the token that the next passage begins with: the first one of a word, or ``next_token``."""
    for token in range(max(0, next_token - overlap), next_token):
        at = starts[token]
        if at == 0 or _SPACE.match(text[at - 1]) or _SPACE.match(text[at]):
            return token
    return next_token


def page_at(pages: Sequence[int], at: int) -> int | None:
    """Return the page, counted from 1, of a character; None without pages."""
    return bisect_right(pages, at) or None if pages else None

"""Running many recognisers over a text, and knowing how much of an unfinished text is certain.

What is found in a whole text, and what is found in it piece by piece, is the same, because all of it is decided from
the left: a candidate depends on its own characters and a bounded number before them. ``Scan.certain`` is the place up
to which no further text can change anything, neither what is found there nor what overlaps it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import re2

from policy.patterns import compiled, form, options
from policy.recognisers import CONTEXT_CHARS, MAX_MATCH_CHARS, Recogniser


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate from ``start`` to ``end``, and the spans in it that are real.

    ``goes_on``: it reached the greatest length, and what follows in its class of characters belongs to it.
    """

    start: int
    end: int
    recogniser: Recogniser
    spans: tuple[tuple[int, int], ...]
    goes_on: bool = False

    @property
    def done(self) -> int:
        """Where the next candidate may begin: a candidate that takes too much hides nothing."""
        return self.spans[-1][1] if self.spans else self.end


class _Encoded:
    """A text as RE2 reads it: UTF-8, with the way from places there to places here. Places are asked for in order."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.bytes = text.encode()
        self._is_ascii = len(self.bytes) == len(text)
        self._at = (0, 0)

    def encoded(self, place: int) -> int:
        """Return the place in bytes of a place in the text."""
        return place if self._is_ascii else len(self.text[:place].encode())

    def decoded(self, place: int) -> int:
        """Return the place in the text of a place in bytes."""
        if self._is_ascii:
            return place
        known, here = self._at
        if place < known:
            known, here = 0, 0
        self._at = place, here + len(self.bytes[known:place].decode())
        return self._at[1]


class _Compiled:
    """A recogniser with its expression."""

    def __init__(self, recogniser: Recogniser, expression: str) -> None:
        self.recogniser = recogniser
        self._expression = compiled(expression)
        self._tail = None if recogniser.tail is None else compiled(f"(?:{form(recogniser.tail).whole})*")

    def candidates(self, text: str, start: int) -> Iterator[Found]:
        """Yield what is found from ``start`` on, from the left."""
        source = _Encoded(text)
        place = source.encoded(start)
        while place < len(source.bytes) and (match := self._expression.search(source.bytes, place)) is not None:
            begin, end = source.decoded(match.start()), source.decoded(match.end())
            found = self._limited(text, begin) if end - begin >= MAX_MATCH_CHARS else self._decided(text, begin, end)
            if found is None or found.end == begin:
                place = match.start() + len(text[begin : begin + 1].encode())
                continue
            yield found
            place = match.end() if found.done == end else match.start() + len(text[begin : found.done].encode())

    def _limited(self, text: str, begin: int) -> Found | None:
        cut = self._expression.match(text[max(0, begin - 1) : begin + MAX_MATCH_CHARS], begin and 1)
        return None if cut is None else self._long(text, begin, begin - (begin and 1) + cut.end())

    def _decided(self, text: str, begin: int, end: int) -> Found:
        before = text[max(0, begin - CONTEXT_CHARS) : begin]
        spans = tuple((begin + s, begin + e) for s, e in self.recogniser.check(text[begin:end], before))
        return Found(begin, end, self.recogniser, spans)

    def _long(self, text: str, begin: int, end: int) -> Found:
        found = self._decided(text, begin, end)
        if self._tail is None or end - begin < MAX_MATCH_CHARS or not found.spans:
            return found
        tail_end = end + self._tail.match(text[end:]).end()
        return Found(begin, tail_end, self.recogniser, ((found.spans[0][0], tail_end),), goes_on=True)

    def rest(self, text: str) -> int:
        """How many characters at the beginning of ``text`` still belong to a match that goes on."""
        return 0 if self._tail is None else int(self._tail.match(text).end())


class Scanner:
    """Some recognisers, run together."""

    def __init__(self, recognisers: Sequence[Recogniser]) -> None:
        forms = [form(recogniser.pattern) for recogniser in recognisers]
        self._compiled = [_Compiled(one, shape.whole) for one, shape in zip(recognisers, forms, strict=True)]
        self._by_name = {one.recogniser.name: one for one in self._compiled}
        self._opening = compiled(rf"(?:{'|'.join(each.opening for each in forms)})\z") if forms else None
        self._any: Any = None
        if forms:
            self._any = re2.Set.SearchSet(options())
            for each in forms:
                self._any.Add(each.whole)
            self._any.Compile()

    def find(self, text: str, start: int, done: Mapping[str, int]) -> list[Found]:
        """Return every candidate from ``start`` on; what stands before is only looked at.

        ``done`` names the recognisers that have looked at more already, and up to where.
        """
        if self._any is None:
            return []
        # With the character before, on which depends whether a word begins.
        which = self._any.Match(text[max(0, start - 1) :]) or ()
        found: list[Found] = []
        for index in which:
            one = self._compiled[index]
            found += one.candidates(text, max(start, done.get(one.recogniser.name, start)))
        return found

    def opens_at(self, text: str, start: int) -> int:
        """Where the longest match begins that is not over yet: the text's length if there is none."""
        start = max(start, len(text) - MAX_MATCH_CHARS + 1)
        if self._opening is None or start >= len(text):
            return len(text)
        return int(self._opening.search(text, start).start())

    def rest(self, name: str, text: str) -> int:
        """How many characters at the beginning of ``text`` belong to a match of ``name`` that goes on."""
        return self._by_name[name].rest(text)


def pulled(certain: int, spans: Iterable[tuple[int, int]]) -> int:
    """Return the last place up to ``certain`` that no span straddles."""
    for start, end in sorted(spans, reverse=True):
        if start < certain < end:
            certain = start
    return certain

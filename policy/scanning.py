"""Running many recognisers over a text, and knowing how much of an unfinished text is certain.

What is found in a whole text, and what is found in it piece by piece, is the same, because all of it is decided from
the left: a candidate depends on its own characters and a bounded number before them. ``Scan.certain`` is the place up
to which no further text can change anything, neither what is found there nor what overlaps it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import re2

from policy.budget import Budget
from policy.recognisers.recogniser import CONTEXT_CHARS, MAX_MATCH_CHARS, Recogniser
from policy.text.patterns import MAX_MEM, Form, compiled, form, options

_WINDOW = 8192
"""Bytes that a tenant's pattern is searched in at once. One search cannot be ended; between two the time is looked at.
"""
_LEAST_MEM = 256 << 10
_MOST_UTF8 = 4


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
    """A recogniser with its expression. ``reach`` is how long its matches are in bytes, if it is a tenant's."""

    def __init__(self, recogniser: Recogniser, shape: Form, max_mem: int) -> None:
        self.recogniser = recogniser
        self._reach = _MOST_UTF8 * (shape.longest or 0) if recogniser.is_foreign else 0
        self._expression = compiled(shape.whole, max_mem)
        self._tail = None if recogniser.tail is None else compiled(f"(?:{form(recogniser.tail).whole})*")

    def candidates(self, text: str, start: int, budget: Budget) -> Iterator[Found]:
        """Yield what is found from ``start`` on, from the left."""
        source = _Encoded(text)
        place = source.encoded(start)
        search = self._search_by_window if self._reach else self._search
        while place < len(source.bytes) and (match := search(source.bytes, place, budget)) is not None:
            budget.check_often()
            begin, end = source.decoded(match.start()), source.decoded(match.end())
            found = self._limited(text, begin) if end - begin >= MAX_MATCH_CHARS else self._decided(text, begin, end)
            if found is None or found.end == begin:
                place = match.start() + len(text[begin : begin + 1].encode())
                continue
            yield found
            place = match.end() if found.done == end else match.start() + len(text[begin : found.done].encode())

    def _search(self, data: bytes, place: int, _budget: Budget) -> Any:
        return self._expression.search(data, place)

    def _search_by_window(self, data: bytes, place: int, budget: Budget) -> Any:
        """Find what a search of the whole finds, since no match is longer than the reach."""
        while place < len(data):
            after = place + _WINDOW
            while after < len(data) and data[after] & 0xC0 == 0x80:
                after += 1  # not in the middle of a character
            match = self._expression.search(data, place, min(len(data), after + self._reach))
            if match is not None and (match.start() < after or after >= len(data)):
                return match
            place = after
            if place < len(data):
                budget.check()
        return None

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
    """Some recognisers, run together.

    Ours are sorted out by one search of all of them. A tenant's patterns are searched one by one: together they may
    make an automaton that grows with every character, and RE2 gives a single one up for a slower way that does not.
    """

    def __init__(self, recognisers: Sequence[Recogniser]) -> None:
        ours = [one for one in recognisers if not one.is_foreign]
        foreign = [one for one in recognisers if one.is_foreign]
        forms = [form(one.pattern) for one in ours]
        foreign_forms = [form(one.pattern) for one in foreign]
        # What RE2 may keep for all of a tenant's patterns together.
        each_mem = max(_LEAST_MEM, MAX_MEM // max(1, len(foreign)))
        self._ours = [_Compiled(one, shape, MAX_MEM) for one, shape in zip(ours, forms, strict=True)]
        self._foreign = [_Compiled(one, shape, each_mem) for one, shape in zip(foreign, foreign_forms, strict=True)]
        self._by_name = {one.recogniser.name: one for one in (*self._ours, *self._foreign)}
        self._opening = _opening(forms)
        self._foreign_opening = _opening(foreign_forms)
        self._foreign_chars = max((shape.longest or 0 for shape in foreign_forms), default=0)
        self._any = _set([shape.whole for shape in forms])
        self._needs = sorted({one.needs for one in ours if one.needs is not None})
        self._any_need = _set(self._needs)

    def find(self, text: str, start: int, done: Mapping[str, int], budget: Budget) -> list[Found]:
        """Return every candidate from ``start`` on; what stands before is only looked at.

        ``done`` names the recognisers that have looked at more already, and up to where. Raises ScanTooLong.
        """
        found: list[Found] = []
        for one in (*self._worth_it(text, start), *self._foreign):
            budget.check_often()
            found += one.candidates(text, max(start, done.get(one.recogniser.name, start)), budget)
        return found

    def _worth_it(self, text: str, start: int) -> list[_Compiled]:
        """Return those of ours whose pattern is there, and the words that they need if they need some."""
        if self._any is None:
            return []
        # With the character before, on which depends whether a word begins.
        which = [self._ours[index] for index in self._any.Match(text[max(0, start - 1) :]) or ()]
        if self._any_need is None or not any(one.recogniser.needs for one in which):
            return which
        said = {self._needs[index] for index in self._any_need.Match(text) or ()}
        return [one for one in which if one.recogniser.needs is None or one.recogniser.needs in said]

    def opens_at(self, text: str, start: int) -> int:
        """Where the longest match begins that is not over yet: the text's length if there is none."""
        return min(
            _open_from(self._opening, text, max(start, len(text) - MAX_MATCH_CHARS + 1)),
            _open_from(self._foreign_opening, text, max(start, len(text) - self._foreign_chars)),
        )

    def rest(self, name: str, text: str) -> int:
        """How many characters at the beginning of ``text`` belong to a match of ``name`` that goes on."""
        return self._by_name[name].rest(text)


def _set(expressions: Sequence[str]) -> Any:
    """Return what says which of the expressions match, None if there are none."""
    if not expressions:
        return None
    found = re2.Set.SearchSet(options())
    for expression in expressions:
        found.Add(expression)
    found.Compile()
    return found


def _opening(forms: Sequence[Form]) -> Any:
    return compiled(rf"(?:{'|'.join(each.opening for each in forms)})\z") if forms else None


def _open_from(opening: Any, text: str, start: int) -> int:
    if opening is None or start >= len(text):
        return len(text)
    return int(opening.search(text, start).start())


def pulled(certain: int, spans: Iterable[tuple[int, int]]) -> int:
    """Return the last place up to ``certain`` that no span straddles."""
    for start, end in sorted(spans, reverse=True):
        if start < certain < end:
            certain = start
    return certain
